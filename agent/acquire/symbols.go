package acquire

import (
	"context"
	"io"

	"github.com/quicklime-ir/quicklime/agent/symbols"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// symbols takes what an analyst needs to read the memory image, as one tar.
func (a *Acquirer) symbols(ctx context.Context, order Order, place Place, m *meter) Result {
	host := symbols.Host{Root: a.Host.Root}
	err := a.alone(ctx, order, place, m, stream{"symbols", evidence.Tar, 1, func(w io.Writer) error {
		return host.WriteBundle(ctx, w)
	}})
	if err != nil {
		return Result{Err: err, Source: "proc"}
	}
	return Result{Status: evidence.Whole, Source: "proc"}
}
