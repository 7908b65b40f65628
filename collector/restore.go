package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/docket"
	"github.com/quicklime-ir/quicklime/collector/ledger"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/store/etcd"
)

// restoreCmd makes a node out of a snapshot of the state, where no node is
// left that has it.
type restoreCmd struct {
	dataFlag
	Bucket    string        `help:"The evidence bucket: it holds the snapshots, and the journals by which cases are brought to where they were."`
	Snapshot  string        `help:"Key of a snapshot in the bucket, the newest where none is given, or a file." placeholder:"KEY|FILE"`
	Retention time.Duration `help:"As the service has it: for what is added to journals."`
	KMSKey    string        `help:"As the service has it."`
	Node      string        `help:"Name of the node that is made; the host's name where none is given." placeholder:"NAME"`
}

// Run restores, and opens what was restored: what is printed is what the
// service will find.
func (c *restoreCmd) Run(ctx context.Context, out io.Writer) error {
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	node, err := nodeFlags{Node: c.Node}.config(c.Data, "", log)
	if err != nil {
		return err
	}
	if etcd.HasMember(node.Dir) {
		return fmt.Errorf("cannot restore to %s: there is a member in it already: move it away if it is lost, or name another folder with --data", node.Dir)
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return fmt.Errorf("cannot make data folder: %w", err)
	}
	bucket, err := c.locker(ctx, log)
	if err != nil {
		return err
	}
	path, from, done, err := c.fetch(ctx, bucket)
	if err != nil {
		return err
	}
	defer done()
	if err := etcd.Restore(path, node.Dir, node.Name, log); err != nil {
		return err
	}
	s, err := etcd.Open(ctx, node)
	if err != nil {
		return err
	}
	defer s.Close()
	return c.finish(ctx, out, s, bucket, node, from)
}

// locker opens the bucket, nil where none is named.
func (c *restoreCmd) locker(ctx context.Context, log *slog.Logger) (*locker.Locker, error) {
	if c.Bucket == "" {
		return nil, nil
	}
	sdk, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot load AWS configuration: %w", err)
	}
	return locker.New(sdk, locker.Config{Bucket: c.Bucket, Retention: c.Retention, KMSKeyID: c.KMSKey}, log)
}

// fetch gives the snapshot as a file, and what it is called. The caller calls
// done.
func (c *restoreCmd) fetch(ctx context.Context, bucket *locker.Locker) (path, from string, done func(), err error) {
	key := c.Snapshot
	switch {
	case key == "" && bucket == nil:
		return "", "", nil, errors.New("no snapshot is named: name the evidence bucket with --bucket, or a file with --snapshot")
	case key == "":
		if key, err = newest(ctx, bucket); err != nil {
			return "", "", nil, err
		}
	case bucket == nil || !strings.HasPrefix(key, locker.StatePrefix):
		return key, key, func() {}, nil
	}
	if path, err = download(ctx, bucket, key, c.Data); err != nil {
		return "", "", nil, err
	}
	return path, "s3://" + c.Bucket + "/" + key, func() { os.Remove(path) }, nil
}

// finish brings the cases to where they were, and says what there is.
func (c *restoreCmd) finish(ctx context.Context, out io.Writer, s *etcd.Store, bucket *locker.Locker, node etcd.Config, from string) error {
	var brought []string
	var behind error
	cases := docket.New(docket.Config{Store: s, Node: node.Name, Log: node.Log, Now: time.Now})
	if bucket != nil {
		cases = docket.New(docket.Config{Store: s, Node: node.Name, Bucket: bucket, Log: node.Log, Now: time.Now})
		book := &ledger.Ledger{Store: s, Bucket: bucket, Log: node.Log, Now: time.Now}
		if brought, behind = (catchUp{bucket, cases, book}).run(ctx); behind != nil {
			behind = fmt.Errorf("cannot bring every case to where its journal has come; what is restored is older: %w", behind)
		}
	}
	if err := c.report(ctx, out, s, cases, node, from, brought); err != nil {
		return err
	}
	return behind
}

// report says what was restored, and what to do next.
func (c *restoreCmd) report(ctx context.Context, out io.Writer, s *etcd.Store, cases *docket.Docket, node etcd.Config, from string, brought []string) error {
	keys, err := s.List(ctx, "")
	if err != nil {
		return err
	}
	all, err := cases.List(ctx)
	if err != nil {
		return err
	}
	running, last := 0, int64(0)
	for _, one := range all {
		if one.State == casefile.Running {
			running++
		}
	}
	for _, e := range keys {
		last = max(last, e.Revision)
	}
	fmt.Fprintf(out, "restored %s to %s: %d keys, the last of revision %d; %d cases, %d of them running\n", from, node.Dir, len(keys), last, len(all), running)
	switch {
	case len(brought) > 0:
		fmt.Fprintf(out, "brought to where their journals have come: %s\n", strings.Join(brought, ", "))
	case c.Bucket == "":
		fmt.Fprintln(out, "no journal was read: cases that have gone on since the snapshot are as they were in it; name the evidence bucket with --bucket to have them brought on")
	}
	if _, err := os.Stat(filepath.Join(c.Data, "signing.key")); err != nil {
		fmt.Fprintf(out, "the key that signs manifests is in no snapshot: put yours at %s, or name it with --signing-key, or a new one is made\n", filepath.Join(c.Data, "signing.key"))
	}
	_, err = fmt.Fprintf(out, "now start this node, %s, by 'quicklime-collector serve'; its running cases go on. No node from before the loss can come back: each joins anew, with an empty folder, by 'cluster join'\n", node.Name)
	return err
}

// newest gives the key of the snapshot that was taken last, by whichever node.
func newest(ctx context.Context, bucket *locker.Locker) (key string, err error) {
	objects, err := bucket.List(ctx, locker.StatePrefix)
	if err != nil {
		return "", err
	}
	var last time.Time
	for _, o := range objects {
		if taken, ok := locker.StateTaken(o.Key); ok && taken.After(last) {
			key, last = o.Key, taken
		}
	}
	if key == "" {
		return "", fmt.Errorf("cannot restore: there is no snapshot under %s in the bucket", locker.StatePrefix)
	}
	return key, nil
}

// download puts an object into a file beside the folder that is made of it.
func download(ctx context.Context, bucket *locker.Locker, key, dir string) (path string, err error) {
	body, err := bucket.Get(ctx, key)
	if err != nil {
		return "", err
	}
	defer body.Close()
	f, err := os.CreateTemp(dir, "snapshot-*.db")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, body)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("cannot get snapshot %s: %w", key, err), os.Remove(f.Name()))
	}
	return f.Name(), nil
}
