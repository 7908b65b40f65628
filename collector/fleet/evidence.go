package fleet

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quicklime-ir/quicklime/collector/ledger"
	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/identity"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// OpenItem implements wire.AgentServiceServer.
func (f *Fleet) OpenItem(ctx context.Context, q *wire.OpenItemRequest) (*wire.OpenItemReply, error) {
	c, ctx, err := f.ordered(ctx, q.GetOrderId())
	if err != nil {
		return nil, err
	}
	item := evidence.Item{Kind: c.kind, Name: q.GetName(), Source: word(q.GetSource()), PartRAMBytes: q.GetPartRamBytes(), PageFlags: text(q.GetPageFlags())}
	var errs [3]error
	item.Format, errs[0] = q.GetFormat().Evidence()
	item.Compression, errs[1] = q.GetCompression().Evidence()
	item.RAM, errs[2] = wire.Ranges(q.GetRanges())
	if err := errors.Join(errs[:]...); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	opened, err := f.cfg.Ledger.Open(ctx, c.caseID, c.instance.ID, item)
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
	c, ctx, err := f.ordered(ctx, q.GetOrderId())
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
	grant, stored, err := f.cfg.Ledger.Grant(ctx, c.caseID, q.GetItemId(), part)
	if err != nil {
		return nil, f.answer(c, err)
	}
	return &wire.GrantPartReply{Url: grant.URL, Headers: grant.Headers, Stored: stored}, nil
}

// CloseItem implements wire.AgentServiceServer.
func (f *Fleet) CloseItem(ctx context.Context, q *wire.CloseItemRequest) (*wire.CloseItemReply, error) {
	c, ctx, err := f.ordered(ctx, q.GetOrderId())
	if err != nil {
		return nil, err
	}
	item, err := f.cfg.Ledger.Close(ctx, c.caseID, q.GetItemId(), q.GetParts(), text(q.GetError()))
	if err != nil {
		return nil, f.answer(c, err)
	}
	return &wire.CloseItemReply{Whole: item.Status == evidence.Whole}, nil
}

// ordered gives the capture that the calling agent was ordered to make, and a
// context by which nothing is recorded once that is over.
func (f *Fleet) ordered(ctx context.Context, orderID string) (*capture, context.Context, error) {
	id, err := f.peer(ctx)
	if err != nil {
		return nil, ctx, err
	}
	c, err := f.lookup(ctx, orderID)
	switch {
	case err == nil && c.agent == keyOf(id):
		return c, c.while(ctx), nil
	case err == nil, errors.Is(err, store.ErrNotFound):
		return nil, ctx, status.Errorf(codes.FailedPrecondition, "order %.80q does not run for %s", orderID, id.Instance)
	}
	f.log.Error("cannot look an order up, its agent will ask again", "instance", id.Instance, "error", err)
	return nil, ctx, status.Error(codes.Unavailable, "the collector cannot read its orders now; ask again")
}

// answer turns an error of the ledger into one of the wire. Details of what
// went wrong on this side stay on this side.
func (f *Fleet) answer(c *capture, err error) error {
	if errors.Is(err, ledger.ErrRefused) {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	if errors.Is(err, store.ErrLost) {
		return status.Errorf(codes.FailedPrecondition, "order %.80q has ended", c.id)
	}
	f.log.Error("cannot serve agent, it will ask again", "case", c.caseID, "instance", c.instance.ID, "kind", c.kind, "error", err)
	return status.Error(codes.Unavailable, "the collector cannot record evidence now; ask again")
}

// peer gives the agent that calls, if it is of this collector's domain.
func (f *Fleet) peer(ctx context.Context) (identity.AgentID, error) {
	id, err := identity.Peer(ctx)
	if err == nil && id.TrustDomain != f.cfg.TrustDomain {
		err = errors.New("agent of trust domain " + id.TrustDomain)
	}
	if err != nil {
		f.log.Warn("peer refused", "error", err)
		return identity.AgentID{}, status.Error(codes.Unauthenticated, err.Error())
	}
	return id, nil
}
