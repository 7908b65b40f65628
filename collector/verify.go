package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/desk"
	"github.com/quicklime-ir/quicklime/collector/locker"
)

// verifyCmd needs no service: only the objects and the public key.
type verifyCmd struct {
	Case   string `arg:"" optional:"" help:"The case's id; none: every case there is."`
	Dir    string `help:"A downloaded copy of the bucket; objects lie in it by their keys." type:"existingdir" xor:"where"`
	Bucket string `help:"The evidence bucket." xor:"where"`
	Key    string `help:"The public key (PEM)." type:"existingfile" required:"" env:"-"` // QUICKLIME_KEY is the service's own
}

func (c *verifyCmd) Run(ctx context.Context, out io.Writer) error {
	key, err := custody.LoadPublic(c.Key)
	if err != nil {
		return err
	}
	objects, done, err := c.objects(ctx)
	if err != nil {
		return err
	}
	defer done()
	proofs, err := desk.Prove(ctx, objects, key, c.Case)
	bad := 0
	for _, p := range proofs {
		if err := p.WriteText(out); err != nil {
			return err
		}
		if !p.OK() {
			bad++
		}
	}
	if bad > 0 {
		err = errors.Join(err, fmt.Errorf("%w: %d of %d cases do not hold", desk.ErrNotProven, bad, len(proofs)))
	}
	return err
}

// objects opens the bucket or its copy.
func (c *verifyCmd) objects(ctx context.Context) (desk.Objects, func() error, error) {
	if c.Dir != "" {
		folder, err := desk.OpenFolder(c.Dir)
		if err != nil {
			return nil, nil, err
		}
		return folder, folder.Close, nil
	}
	if c.Bucket == "" {
		return nil, nil, errors.New("cannot verify nothing: name the evidence bucket with --bucket, or a copy of it with --dir")
	}
	sdk, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot load AWS configuration: %w", err)
	}
	bucket, err := locker.New(sdk, locker.Config{Bucket: c.Bucket}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	return bucketObjects{bucket}, func() error { return nil }, nil
}

// bucketObjects reads the bucket itself.
type bucketObjects struct{ locker *locker.Locker }

func (b bucketObjects) Open(ctx context.Context, key string) (io.ReadCloser, error) {
	return b.locker.Get(ctx, key)
}

func (b bucketObjects) Keys(ctx context.Context, prefix string) ([]string, error) {
	objects, err := b.locker.List(ctx, prefix)
	var keys []string
	for _, o := range objects {
		keys = append(keys, o.Key)
	}
	return keys, err
}
