package world

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quicklime-ir/quicklime/agent/acquire"
	"github.com/quicklime-ir/quicklime/agent/artifact"
	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/agent/session"
	"github.com/quicklime-ir/quicklime/agent/upload"
	"github.com/quicklime-ir/quicklime/proto/identity"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// AgentSpec says what an agent without a guest is made of. Its JSON form is
// an argument of an agent in a process of its own.
type AgentSpec struct {
	Instance  string
	Collector string         // HOST:PORT, those of several nodes with commas
	Files     identity.Files // its certificate; the authority is S3's too
	Image     string         // a LiME image for its memory
	Root      string         // a folder for its file system
	Metadata  string         // URL of its metadata service
}

// Run attaches the agent, put together as the real one is, until ctx ends.
func (a AgentSpec) Run(ctx context.Context, logs io.Writer) error {
	tls, err := identity.ClientTLS(a.Files)
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(a.Files.CA)
	if err != nil {
		return fmt.Errorf("cannot read the lab's authority: %w", err)
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(pem)
	log := slog.New(slog.NewTextHandler(logs, nil))
	s, err := session.New(session.Config{Collectors: strings.Split(a.Collector, ","), TLS: tls, Log: log, Hello: func() *wire.Hello {
		return &wire.Hello{AgentVersion: "lab", BinarySha256: make([]byte, 32), Hostname: a.Instance, KernelRelease: "6.1.0-lab", WallClock: timestamppb.Now(),
			MemorySources: []*wire.SourceVerdict{{Source: "file", Usable: true}}}
	}})
	if err != nil {
		return err
	}
	client := upload.NewClient(acquire.MaxUploads, authorities)
	taker := &acquire.Acquirer{Memory: memory.Options{File: a.Image}, Host: &artifact.Host{Root: a.Root, MetadataURL: a.Metadata, Log: log}, Log: log}
	return s.Run(ctx, func(ctx context.Context, o session.Order, report func(session.Progress)) session.Result {
		place := acquire.Bucket{Ledger: s, Order: o.ID, Upload: upload.Options{Client: client, Log: log, Throttle: o.Throttle}}
		r := taker.Run(ctx, acquire.Order{Kind: o.Kind, MemorySource: "file", Compression: o.Compression, Throttle: o.Throttle,
			Case: o.Case, Instance: o.Instance, Definitions: o.Definitions, ProcessMemory: o.ProcessMemory}, place, func(p acquire.Progress) {
			report(session.Progress{BytesRead: p.Read, BytesTotal: p.Total, BytesStored: p.Stored, PartsStored: p.Parts, Doing: p.Doing, Uplink: p.Uplink, Retries: p.Retries})
		})
		out := session.Result{Outcome: r.Status, Source: r.Source}
		if r.Err != nil {
			out.Error = r.Err.Error()
		}
		return out
	})
}

// AgentSpec makes an agent's, with a new certificate. image is a LiME image;
// root is the folder that stands for its file system.
func (w *World) AgentSpec(instance, image, root string) (AgentSpec, error) {
	files, err := w.AgentFiles(instance)
	return AgentSpec{Instance: instance, Collector: w.CollectorAddr(), Files: files, Image: image, Root: root, Metadata: w.AWS.IMDSURL()}, err
}

// Agent is an agent in this process.
type Agent struct {
	stop context.CancelFunc
	done chan error
}

// StartAgent attaches an agent in this process.
func (w *World) StartAgent(instance, image, root string) (*Agent, error) {
	spec, err := w.AgentSpec(instance, image, root)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &Agent{stop: stop, done: make(chan error, 1)}
	go func() { a.done <- spec.Run(ctx, &w.logs) }() // ends with Stop
	return a, nil
}

// Stop ends the agent, and with it what it is at, as a power cut would: its
// successor knows nothing of it.
func (a *Agent) Stop() error {
	a.stop()
	if err := <-a.done; !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
