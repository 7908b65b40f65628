package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/isf"
	"github.com/quicklime-ir/quicklime/collector/proof"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// Bounds of a stored bundle, in bytes: as it lies, and what its
// decompression may hold. The agent compresses in frames of 1 MiB.
const (
	maxStoredBundle = 256 << 20
	maxBundleWindow = 8 << 20
)

// symbolsCmd needs no service: only the objects.
type symbolsCmd struct {
	evidenceFlags
	Case string `arg:"" help:"The case's id."`
	Out  string `help:"File for the symbols; .json is added where it is missing, as Volatility looks for that. - is standard output." required:"" type:"path"`
}

// Run builds the symbol file of the case's kernel. With --key only a bundle
// that the signed manifest vouches for is read.
func (c *symbolsCmd) Run(ctx context.Context, out io.Writer) error {
	objects, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	key, body, err := c.stored(ctx, objects)
	if err != nil {
		return err
	}
	bundle, err := decompress(key, body)
	if err != nil {
		return err
	}
	file, report, err := isf.Build(bundle, version)
	if err != nil {
		return err
	}
	if c.Out == "-" {
		if _, err := file.WriteTo(out); err != nil {
			return err
		}
		out = os.Stderr
	} else if c.Out, err = writeSymbols(c.Out, file); err != nil {
		return err
	} else {
		fmt.Fprintf(out, "symbols   %s\n", c.Out)
	}
	if err := report.WriteText(out); err != nil {
		return err
	}
	if len(report.Required) > 0 {
		return fmt.Errorf("the symbols lack types without which Volatility refuses them: %s", strings.Join(report.Required, ", "))
	}
	return nil
}

// stored gives the bundle as it lies in the bucket, checked where there is a
// key. It is read once, so that what was checked is what is used.
func (c *symbolsCmd) stored(ctx context.Context, objects proof.Objects) (key string, body []byte, err error) {
	if c.Key == "" {
		if key, err = c.find(ctx, objects); err != nil {
			return "", nil, err
		}
		body, err = readObject(ctx, objects, key)
		return key, body, err
	}
	public, err := custody.LoadPublic(c.Key)
	if err != nil {
		return "", nil, err
	}
	manifest, err := proof.Load(ctx, objects, public, c.Case)
	if err != nil {
		return "", nil, err
	}
	at := slices.IndexFunc(manifest.Items, func(i evidence.Item) bool {
		return i.Kind == evidence.Symbols && i.Format == evidence.Tar && i.Size > 0
	})
	if at < 0 || manifest.Case != c.Case {
		return "", nil, fmt.Errorf("cannot read the symbols of case %s: its manifest, of case %.80q, names no bundle of them", c.Case, manifest.Case)
	}
	item := manifest.Items[at]
	if body, err = readObject(ctx, objects, item.Key); err != nil {
		return "", nil, err
	}
	manifest.Items = []evidence.Item{item}
	report, err := evidence.Verify(ctx, atHand(body), manifest, evidence.Options{})
	if err == nil && !report.OK {
		err = fmt.Errorf("%w: %s is not what the manifest says:%s", proof.ErrNotProven, item.Key, failures(report))
	}
	return item.Key, body, err
}

// find looks for the bundle by its key. No manifest is needed, so the
// symbols of a case that is still running can be read.
func (c *symbolsCmd) find(ctx context.Context, objects proof.Objects) (string, error) {
	keys, err := objects.Keys(ctx, "cases/"+c.Case+"/")
	if err != nil {
		return "", err
	}
	keys = slices.DeleteFunc(keys, func(k string) bool { return !strings.Contains(k, "/"+string(evidence.Symbols)+"/symbols.tar") })
	if len(keys) != 1 {
		return "", fmt.Errorf("cannot read the symbols of case %s: there are %d bundles of them, want one", c.Case, len(keys))
	}
	return keys[0], nil
}

func readObject(ctx context.Context, objects proof.Objects, key string) ([]byte, error) {
	r, err := objects.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	body, err := io.ReadAll(io.LimitReader(r, maxStoredBundle+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", key, err)
	}
	if len(body) > maxStoredBundle {
		return nil, fmt.Errorf("cannot read %s: it has over %d bytes", key, maxStoredBundle)
	}
	return body, nil
}

// atHand is the one object that was read.
type atHand []byte

func (a atHand) Open(context.Context, string) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(a)), nil
}

func (a atHand) OpenRange(_ context.Context, _ string, offset, length int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(a), offset, length)), nil
}

// failures lists the checks that do not hold.
func failures(r evidence.Report) string {
	var text strings.Builder
	for _, item := range r.Items {
		for _, check := range item.Checks {
			if !check.OK {
				fmt.Fprintf(&text, " %s: %s;", check.Name, check.Detail)
			}
		}
	}
	return text.String()
}

// decompress reads a stored bundle.
func decompress(key string, body []byte) (isf.Bundle, error) {
	if !strings.HasSuffix(key, ".zst") {
		return isf.ReadBundle(bytes.NewReader(body))
	}
	plain, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxWindow(maxBundleWindow), zstd.WithDecoderMaxMemory(maxBundleWindow))
	if err != nil {
		return isf.Bundle{}, fmt.Errorf("cannot read %s: %w", key, err)
	}
	defer plain.Close()
	return isf.ReadBundle(plain)
}

// writeSymbols writes the file whole or not at all, and gives its name.
func writeSymbols(name string, file *isf.File) (string, error) {
	if filepath.Ext(name) != ".json" {
		name += ".json"
	}
	temporary, err := os.CreateTemp(filepath.Dir(name), ".symbols-*")
	if err != nil {
		return name, fmt.Errorf("cannot write the symbols: %w", err)
	}
	_, err = file.WriteTo(temporary)
	if err = errors.Join(err, temporary.Chmod(0o644), temporary.Close()); err == nil {
		err = os.Rename(temporary.Name(), name)
	}
	if err != nil {
		return name, errors.Join(fmt.Errorf("cannot write the symbols: %w", err), os.Remove(temporary.Name()))
	}
	return name, nil
}
