package session

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/agent/upload"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// Bounds of a call to the ledger.
const (
	callLimit   = 30 * time.Second // of one try; a node that fails for so long is left
	firstRepeat = 200 * time.Millisecond
	lastRepeat  = 10 * time.Second
)

// OpenItem begins an item in the collector's ledger, or finds it again after
// an interruption: stored then holds the parts that need not be sent again,
// and closed says that the item is complete. It waits for the collector as
// long as ctx lets it; a refusal is upload.ErrRefused.
func (s *Session) OpenItem(ctx context.Context, order string, item evidence.Item) (id string, stored []evidence.Part, closed bool, err error) {
	reply, err := call(ctx, s, "open item "+item.Name, wire.AgentServiceClient.OpenItem, &wire.OpenItemRequest{
		OrderId: order, Name: item.Name, Format: wire.FormatOf(item.Format), Compression: wire.CompressionOf(item.Compression),
		Source: item.Source, Ranges: wire.RangesOf(item.RAM), PartRamBytes: item.PartRAMBytes, PageFlags: item.PageFlags,
	})
	if err != nil {
		return "", nil, false, err
	}
	for _, p := range reply.GetStored() {
		part := evidence.Part{Number: p.GetNumber(), Size: p.GetSize()}
		copy(part.SHA256[:], p.GetSha256())
		stored = append(stored, part)
	}
	return reply.GetItemId(), stored, reply.GetClosed(), nil
}

// GrantPart has a part's hash recorded and gets the signed request that can
// store it.
func (s *Session) GrantPart(ctx context.Context, order, item string, p pack.Part) (upload.Grant, error) {
	reply, err := call(ctx, s, fmt.Sprintf("ask grant for part %d of %s", p.Number, item), wire.AgentServiceClient.GrantPart, &wire.GrantPartRequest{
		OrderId: order, ItemId: item, Number: p.Number, Size: uint64(len(p.Bytes)), Sha256: p.SHA256[:], RawSize: p.RawSize,
		Ranges: wire.RangesOf(p.Ranges), Gaps: wire.GapsOf(p.Gaps), Frames: wire.FramesOf(p.Frames),
		ReadStarted: timestamppb.New(p.Started), ReadEnded: timestamppb.New(p.Ended), MonotonicStarted: durationpb.New(p.Monotonic),
	})
	if err != nil {
		return upload.Grant{}, err
	}
	return upload.Grant{URL: reply.GetUrl(), Headers: reply.GetHeaders(), Stored: reply.GetStored()}, nil
}

// CloseItem has the item completed from its stored parts. An empty reason
// says that all of it was read.
func (s *Session) CloseItem(ctx context.Context, order, item string, parts int32, reason string) error {
	_, err := call(ctx, s, "close item "+item, wire.AgentServiceClient.CloseItem, &wire.CloseItemRequest{OrderId: order, ItemId: item, Parts: parts, Error: clip(reason)})
	return err
}

// call tries until the collector answers, one way or the other. Every call
// of the ledger is harmless to repeat, also at another node; to one the
// session goes when the present one holds the stream, but serves no calls.
func call[Q, R any](ctx context.Context, s *Session, what string, do func(wire.AgentServiceClient, context.Context, *Q, ...grpc.CallOption) (*R, error), request *Q) (*R, error) {
	backoff := firstRepeat
	var failing *link
	var since time.Time
	for {
		l, err := s.hanging(ctx)
		if err != nil {
			return nil, fmt.Errorf("cannot %s: %w", what, err)
		}
		if l != failing {
			failing, since = l, time.Now()
		}
		try, cancel := context.WithTimeout(ctx, callLimit)
		reply, err := do(l.api, try, request)
		cancel()
		if err == nil {
			return reply, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("cannot %s: %w", what, context.Cause(ctx))
		}
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted, codes.ResourceExhausted, codes.Internal, codes.Unknown, codes.Canceled:
		default:
			return nil, fmt.Errorf("cannot %s: %w: %s", what, upload.ErrRefused, status.Convert(err).Message())
		}
		if time.Since(since) >= callLimit && !l.alone {
			l.leave(fmt.Errorf("%w: cannot %s: %w", errUseless, what, err))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("cannot %s: %w", what, context.Cause(ctx))
		case <-time.After(max(asked(err), rand.N(backoff))):
		}
		backoff = min(2*backoff, lastRepeat)
	}
}
