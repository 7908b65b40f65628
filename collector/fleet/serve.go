package fleet

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/quicklime-ir/quicklime/collector/gate"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// NewServer returns the gRPC server of the agents' listener, which is to
// serve g.Listener(l). Its bounds: what g lets in, small messages, few streams
// a connection, no more memory than an idle stream needs, and dead peers found
// within 80 seconds. A handler that panics answers its own call with an
// error, and no other.
//
// There is no MaxConnectionAge, as it would end streams of agents that
// capture: an agent attaches anew by itself when it has nothing to do.
func NewServer(f *Fleet, config *tls.Config, g *gate.Gate, log *slog.Logger) *grpc.Server {
	server := grpc.NewServer(
		grpc.Creds(g.Credentials(credentials.NewTLS(config))),
		grpc.MaxRecvMsgSize(256<<10),
		grpc.MaxConcurrentStreams(16),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.ReadBufferSize(0), // TLS has one
		grpc.WriteBufferSize(4<<10),
		// Messages are small: no window needs to grow, and none is measured.
		grpc.StaticStreamWindowSize(64<<10),
		grpc.StaticConnWindowSize(64<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 2 * time.Minute, Time: time.Minute, Timeout: 20 * time.Second}),
		// An agent asks after a minute of silence whether this node is there.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 20 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(func(ctx context.Context, q any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (r any, err error) {
			defer recovered(log, info.FullMethod, &err)
			return next(ctx, q)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			defer recovered(log, info.FullMethod, &err)
			id, err := f.peer(stream.Context())
			if err != nil {
				return err
			}
			leave, err := g.Attach(id.String())
			if err != nil {
				return err
			}
			defer leave()
			return next(srv, stream)
		}),
	)
	wire.RegisterAgentServiceServer(server, f)
	return server
}

func recovered(log *slog.Logger, method string, err *error) {
	if p := recover(); p != nil {
		log.Error("panic in a call", "method", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal error")
	}
}
