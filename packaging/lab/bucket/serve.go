// Package bucket is the lab's S3: a real server, versitygw, in a process of
// its own, with versioning and Object Lock on, and a proxy in front of it
// that speaks TLS and makes faults when told to.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"golang.org/x/sys/unix"
)

// Config says where the server keeps its data and how it is reached.
type Config struct {
	Root      string // folder, absolute; made if it is not there
	Addr      string // 127.0.0.1:PORT
	Region    string
	AccessKey string
	SecretKey string
}

const healthPath = "/healthz"

// Serve runs the server in this process until ctx ends. versitygw changes
// the working folder and knows one server a process, so this is a process's
// whole work.
func Serve(ctx context.Context, c Config) error {
	if !filepath.IsAbs(c.Root) {
		return fmt.Errorf("cannot serve S3 from %s: want an absolute path", c.Root)
	}
	data, versions := filepath.Join(c.Root, "data"), filepath.Join(c.Root, "versions")
	for _, dir := range []string{data, versions} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("cannot make folder for S3: %w", err)
		}
	}
	store, err := metadata(c.Root, data)
	if err != nil {
		return err
	}
	backend, err := posix.New(data, store, posix.PosixOpts{VersioningDir: versions})
	if err != nil {
		return fmt.Errorf("cannot open S3 data in %s: %w", data, err)
	}
	err = embedgw.RunVersityGW(ctx, backend, &embedgw.Config{
		RootUserAccess: c.AccessKey, RootUserSecret: c.SecretKey, Region: c.Region, Ports: []string{c.Addr},
		MaxConnections: 4096, MaxRequests: 4096, MultipartMaxParts: 10_000, HealthPath: healthPath, KeepAlive: true, Quiet: true,
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("cannot serve S3 at %s: %w", c.Addr, err)
	}
	return nil
}

// metadata keeps objects' metadata in extended attributes where the file
// system has them, else in files beside.
func metadata(root, data string) (meta.MetadataStorer, error) {
	err := unix.Setxattr(data, "user.quicklime", []byte("1"), 0)
	if err == nil {
		return meta.XattrMeta{}, nil
	}
	if !errors.Is(err, unix.ENOTSUP) {
		return nil, fmt.Errorf("cannot tell whether %s keeps extended attributes: %w", data, err)
	}
	sidecar := filepath.Join(root, "sidecar")
	if err := os.MkdirAll(sidecar, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make folder for S3: %w", err)
	}
	return meta.NewSideCar(sidecar)
}
