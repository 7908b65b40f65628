package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/proof"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// evidenceFlags say where the evidence of sealed cases lies, and whose
// signature is believed. The commands that read evidence share them; none
// needs the service.
type evidenceFlags struct {
	Dir    string `help:"A downloaded copy of the bucket; objects lie in it by their keys." type:"existingdir" xor:"where"`
	Bucket string `help:"The evidence bucket." xor:"where"`
	Key    string `help:"The public key (PEM)." type:"existingfile" env:"-"` // QUICKLIME_KEY is the service's own
}

// open opens the bucket or its copy. The caller calls done.
func (f evidenceFlags) open(ctx context.Context) (objects proof.Objects, done func() error, err error) {
	if f.Dir != "" {
		folder, err := proof.OpenFolder(f.Dir)
		if err != nil {
			return nil, nil, err
		}
		return folder, folder.Close, nil
	}
	if f.Bucket == "" {
		return nil, nil, errors.New("no evidence is named: name the evidence bucket with --bucket, or a copy of it with --dir")
	}
	sdk, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot load AWS configuration: %w", err)
	}
	bucket, err := locker.New(sdk, locker.Config{Bucket: f.Bucket}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	return bucketObjects{bucket}, func() error { return nil }, nil
}

// manifest reads a case's manifest, and says on standard error where nothing
// shows that it is the one that was signed.
func (f evidenceFlags) manifest(ctx context.Context, objects proof.Objects, caseID string) (evidence.Manifest, error) {
	var key ed25519.PublicKey
	if f.Key != "" {
		var err error
		if key, err = custody.LoadPublic(f.Key); err != nil {
			return evidence.Manifest{}, err
		}
	}
	manifest, err := proof.Load(ctx, objects, key, caseID)
	if err == nil && key == nil {
		fmt.Fprintln(os.Stderr, "quicklime-collector: nothing is proven without the public key: name it with --key")
	}
	return manifest, err
}

// bucketObjects reads the bucket itself.
type bucketObjects struct{ locker *locker.Locker }

func (b bucketObjects) Open(ctx context.Context, key string) (io.ReadCloser, error) {
	return b.locker.Get(ctx, key)
}

func (b bucketObjects) OpenRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	return b.locker.GetRange(ctx, key, offset, length)
}

func (b bucketObjects) Keys(ctx context.Context, prefix string) ([]string, error) {
	objects, err := b.locker.List(ctx, prefix)
	var keys []string
	for _, o := range objects {
		keys = append(keys, o.Key)
	}
	return keys, err
}
