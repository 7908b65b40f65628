// Package bucket is the lab's S3: a real server, versitygw, in a process of
// its own, with versioning and Object Lock on, and a proxy in front of it
// that makes faults when told to. Both speak TLS alone.
//
// A server that checks hashes, conditions and locks by itself finds what a
// stand-in of ours would take for granted.
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
	"github.com/versity/versitygw/s3api"
	"golang.org/x/sys/unix"
)

// Config says where the server keeps its data and how it is reached.
type Config struct {
	Root      string // folder, absolute; made if it is not there
	Addr      string // 127.0.0.1:PORT
	Host      string // address of this host at which the proxy listens; "" is 127.0.0.1
	Region    string
	AccessKey string
	SecretKey string
}

const healthPath = "/healthz"

// The server's certificate lies in its root as server.crt and server.key.
const certName = "server"

// Bounds of the server. S3 allows 10,000 parts.
const (
	maxConnections = 4096
	maxParts       = 10_000
)

// Serve runs the server in this process until ctx ends. versitygw changes
// the working folder and knows one server a process, so this is a process's
// whole work. Start has put the server's certificate into Root; without one
// it serves nothing.
func Serve(ctx context.Context, c Config) error { return serve(ctx, c, keepsAttributes) }

func serve(ctx context.Context, c Config, keepsAttributes func(dir string) (bool, error)) error {
	if !filepath.IsAbs(c.Root) {
		return fmt.Errorf("cannot serve S3 from %s: want an absolute path", c.Root)
	}
	data, versions := filepath.Join(c.Root, "data"), filepath.Join(c.Root, "versions")
	for _, dir := range []string{data, versions} {
		if err := makeFolder(dir); err != nil {
			return err
		}
	}
	opts := posix.PosixOpts{VersioningDir: versions}
	store, err := metadata(c.Root, data, keepsAttributes, &opts)
	if err != nil {
		return err
	}
	backend, err := posix.New(data, store, opts)
	if err != nil {
		return fmt.Errorf("cannot open S3 data in %s: %w", data, err)
	}
	err = embedgw.RunVersityGW(ctx, backend, &embedgw.Config{
		RootUserAccess: c.AccessKey, RootUserSecret: c.SecretKey, Region: c.Region, Ports: []string{c.Addr},
		CertFile: filepath.Join(c.Root, certName+".crt"), KeyFile: filepath.Join(c.Root, certName+".key"),
		MaxConnections: maxConnections, MaxRequests: maxConnections, MultipartMaxParts: maxParts,
		HealthPath: healthPath, KeepAlive: true, Quiet: true,
		S3Options: []s3api.Option{s3api.WithMiddleware("/", readToEnd), s3api.WithMiddleware("/", refuseEncryption)},
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("cannot serve S3 at %s: %w", c.Addr, err)
	}
	return nil
}

// metadata keeps objects' metadata in extended attributes where the file
// system has them, else in files beside.
func metadata(root, data string, keepsAttributes func(dir string) (bool, error), opts *posix.PosixOpts) (meta.MetadataStorer, error) {
	kept, err := keepsAttributes(data)
	if err != nil {
		return nil, fmt.Errorf("cannot tell whether %s keeps extended attributes: %w", data, err)
	}
	if kept {
		return meta.XattrMeta{}, nil
	}
	opts.SideCarDir = filepath.Join(root, "sidecar")
	if err := makeFolder(opts.SideCarDir); err != nil {
		return nil, err
	}
	return meta.NewSideCar(opts.SideCarDir)
}

// keepsAttributes reports whether files in a folder keep attributes of
// users. Source: xattr(7).
func keepsAttributes(dir string) (bool, error) {
	const name = "user.quicklime"
	err := unix.Setxattr(dir, name, []byte("1"), 0)
	if errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, unix.Removexattr(dir, name)
}

func makeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make folder for S3: %w", err)
	}
	return nil
}
