package fleet

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quicklime-ir/quicklime/collector/ledger"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/identity"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// startGrace is how long after the collector's start an order that it does
// not know may still be one of a case that is being taken up again, unless it
// has ended since.
const startGrace = time.Minute

// OpenItem implements wire.AgentServiceServer.
func (f *Fleet) OpenItem(ctx context.Context, q *wire.OpenItemRequest) (*wire.OpenItemReply, error) {
	c, err := f.ordered(ctx, q.GetOrderId())
	if err != nil {
		return nil, err
	}
	item := evidence.Item{Kind: c.Kind, Name: q.GetName(), Source: word(q.GetSource()), PartRAMBytes: q.GetPartRamBytes(), PageFlags: text(q.GetPageFlags())}
	var errs [3]error
	item.Format, errs[0] = q.GetFormat().Evidence()
	item.Compression, errs[1] = q.GetCompression().Evidence()
	item.RAM, errs[2] = wire.Ranges(q.GetRanges())
	if err := errors.Join(errs[:]...); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	opened, err := f.ledger.Open(ctx, c.Case, c.Instance.ID, item)
	if err != nil {
		return nil, f.answer(c, err)
	}
	reply := &wire.OpenItemReply{ItemId: opened.ID, Closed: opened.Closed}
	for _, p := range opened.Stored {
		reply.Stored = append(reply.Stored, &wire.StoredPart{Number: p.Number, Size: p.Size, Sha256: p.SHA256[:]})
	}
	return reply, nil
}

// GrantPart implements wire.AgentServiceServer.
func (f *Fleet) GrantPart(ctx context.Context, q *wire.GrantPartRequest) (*wire.GrantPartReply, error) {
	c, err := f.ordered(ctx, q.GetOrderId())
	if err != nil {
		return nil, err
	}
	part := evidence.Part{Number: q.GetNumber(), Size: q.GetSize(), RawSize: q.GetRawSize(),
		Started: q.GetReadStarted().AsTime(), Ended: q.GetReadEnded().AsTime(), Monotonic: q.GetMonotonicStarted().AsDuration()}
	var errs [3]error
	part.Ranges, errs[0] = wire.Ranges(q.GetRanges())
	part.Gaps, errs[1] = wire.Gaps(q.GetGaps())
	part.Frames, errs[2] = wire.Frames(q.GetFrames(), part.Size, part.RawSize)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if copy(part.SHA256[:], q.GetSha256()) != len(part.SHA256) || len(q.GetSha256()) != len(part.SHA256) {
		return nil, status.Errorf(codes.InvalidArgument, "part %d with a SHA-256 of %d bytes, want 32", part.Number, len(q.GetSha256()))
	}
	grant, stored, err := f.ledger.Grant(ctx, c.Case, q.GetItemId(), part)
	if err != nil {
		return nil, f.answer(c, err)
	}
	return &wire.GrantPartReply{Url: grant.URL, Headers: grant.Headers, Stored: stored}, nil
}

// CloseItem implements wire.AgentServiceServer.
func (f *Fleet) CloseItem(ctx context.Context, q *wire.CloseItemRequest) (*wire.CloseItemReply, error) {
	c, err := f.ordered(ctx, q.GetOrderId())
	if err != nil {
		return nil, err
	}
	item, err := f.ledger.Close(ctx, c.Case, q.GetItemId(), q.GetParts(), text(q.GetError()))
	if err != nil {
		return nil, f.answer(c, err)
	}
	return &wire.CloseItemReply{Whole: item.Status == evidence.Whole}, nil
}

// ordered gives the capture that the calling agent was ordered to make.
func (f *Fleet) ordered(ctx context.Context, orderID string) (Capture, error) {
	id, err := f.peer(ctx)
	if err != nil {
		return Capture{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.captures[orderID]
	if c != nil && c.agent == keyOf(id) {
		return c.Capture, nil
	}
	if c == nil && !f.ended[orderID] && time.Since(f.started) < startGrace {
		return Capture{}, status.Error(codes.Unavailable, "the collector has just started; ask again")
	}
	return Capture{}, status.Errorf(codes.FailedPrecondition, "order %.80q does not run for %s", orderID, id.Instance)
}

// answer turns an error of the ledger into one of the wire. Details of what
// went wrong on this side stay on this side.
func (f *Fleet) answer(c Capture, err error) error {
	if errors.Is(err, ledger.ErrRefused) {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	f.log.Error("cannot serve agent, it will ask again", "case", c.Case, "instance", c.Instance.ID, "kind", c.Kind, "error", err)
	return status.Error(codes.Unavailable, "the collector cannot record evidence now; ask again")
}

// peer gives the agent that calls, if it is of this collector's domain.
func (f *Fleet) peer(ctx context.Context) (identity.AgentID, error) {
	id, err := identity.Peer(ctx)
	if err == nil && id.TrustDomain != f.trustDomain {
		err = errors.New("agent of trust domain " + id.TrustDomain)
	}
	if err != nil {
		f.log.Warn("peer refused", "error", err)
		return identity.AgentID{}, status.Error(codes.Unauthenticated, err.Error())
	}
	return id, nil
}
