package demo

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/desk"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// show prints the case as an operator sees it, and what Discord was told.
func show(ctx context.Context, out io.Writer, w *world.World, c casefile.Case) error {
	fmt.Fprintln(out)
	if err := desk.PrintCase(out, c, nil); err != nil {
		return err
	}
	fmt.Fprintln(out)
	for _, m := range w.Discord.Messages() {
		for _, e := range m.Embeds {
			fmt.Fprintf(out, "Discord   %s  %s\n", m.Received.Format("15:04:05"), plain(e.Title))
			for _, f := range e.Fields {
				fmt.Fprintf(out, "            %s: %s\n", plain(f.Name), strings.ReplaceAll(plain(f.Value), `\n`, "\n              "))
			}
		}
	}
	fmt.Fprintln(out)
	return ctx.Err()
}

// plain shows a message's text without Discord's escapes.
func plain(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return desk.Plain(b.String())
}

// download copies every object of the bucket into a folder, by its key.
func download(ctx context.Context, w *world.World, dir string) error {
	client := w.S3.Client()
	pages := s3.NewListObjectsV2Paginator(client, &s3.ListObjectsV2Input{Bucket: aws.String(world.Bucket)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("cannot list the bucket: %w", err)
		}
		for _, o := range page.Contents {
			if err := downloadOne(ctx, client, dir, aws.ToString(o.Key)); err != nil {
				return err
			}
		}
	}
	return nil
}

func downloadOne(ctx context.Context, client *s3.Client, dir, key string) error {
	if !filepath.IsLocal(key) {
		return fmt.Errorf("cannot copy object %q: its key leads out of the folder", key)
	}
	object, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(world.Bucket), Key: &key})
	if err != nil {
		return fmt.Errorf("cannot copy object %s: %w", key, err)
	}
	defer object.Body.Close()
	return write(filepath.Join(dir, key), object.Body)
}

func copyFile(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	return write(to, f)
}

func write(path string, from io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, from); err != nil {
		f.Close()
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return f.Close()
}
