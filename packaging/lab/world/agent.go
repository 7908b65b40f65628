package world

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quicklime-ir/quicklime/agent/acquire"
	"github.com/quicklime-ir/quicklime/agent/artifact"
	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/agent/session"
	"github.com/quicklime-ir/quicklime/agent/upload"
	"github.com/quicklime-ir/quicklime/proto/identity"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// Agent is an agent in this process, put together as the real one is, with
// an image file for its memory and a folder for its host.
type Agent struct {
	stop context.CancelFunc
	done chan error
}

// StartAgent attaches an agent for an instance. image is a LiME image; root
// is the folder that stands for its file system.
func (w *World) StartAgent(instance, image, root string) (*Agent, error) {
	files, err := w.AgentFiles(instance)
	if err != nil {
		return nil, err
	}
	tls, err := identity.ClientTLS(files)
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(&w.logs, nil))
	s, err := session.New(session.Config{Collector: w.CollectorAddr(), TLS: tls, Log: log, Hello: func() *wire.Hello {
		return &wire.Hello{AgentVersion: "lab", BinarySha256: make([]byte, 32), Hostname: instance, KernelRelease: "6.1.0-lab", WallClock: timestamppb.Now()}
	}})
	if err != nil {
		return nil, err
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(w.authority.PEM)
	client := upload.NewClient(acquire.MaxUploads, authorities)
	taker := &acquire.Acquirer{Memory: memory.Options{File: image}, Host: &artifact.Host{Root: root, Log: log}, Log: log}
	ctx, stop := context.WithCancel(context.Background())
	a := &Agent{stop: stop, done: make(chan error, 1)}
	go func() { // ends with Stop
		a.done <- s.Run(ctx, func(ctx context.Context, o session.Order, report func(session.Progress)) session.Result {
			place := acquire.Bucket{Ledger: s, Order: o.ID, Upload: upload.Options{Client: client, Log: log, Throttle: o.Throttle}}
			r := taker.Run(ctx, acquire.Order{Kind: o.Kind, MemorySource: "file", Compression: o.Compression, Throttle: o.Throttle}, place, func(p acquire.Progress) {
				report(session.Progress{BytesRead: p.Read, BytesTotal: p.Total, BytesStored: p.Stored, PartsStored: p.Parts, Doing: p.Doing, Uplink: p.Uplink, Retries: p.Retries})
			})
			out := session.Result{Outcome: r.Status, Source: r.Source}
			if r.Err != nil {
				out.Error = r.Err.Error()
			}
			return out
		})
	}()
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
