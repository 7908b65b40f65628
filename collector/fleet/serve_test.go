package fleet

import (
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// TestAnInstanceThatAttachesWithoutEnd is told to wait, in words that its
// agent understands.
func TestAnInstanceThatAttachesWithoutEnd(t *testing.T) {
	h := newHouse(t)
	api := h.dial(t, victim)
	for range 100 {
		stream, err := api.Attach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&wire.AgentMessage{Body: &wire.AgentMessage_Heartbeat{}}) // no hello: refused
		_, err = stream.Recv()
		if status.Code(err) == codes.InvalidArgument {
			continue
		}
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.RetryInfo); ok && info.GetRetryDelay().AsDuration() > 0 && status.Code(err) == codes.ResourceExhausted {
				return
			}
		}
		t.Fatalf("the stream ended with %v", err)
	}
	t.Error("it was let in a hundred times")
}
