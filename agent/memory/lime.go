package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Bounds of a LiME stream.
const (
	connectLimit = 20 * time.Second // from loading the module to its first header
	streamStall  = 30 * time.Second // without a byte
	unloadTries  = 50               // a tenth of a second apart
)

// limeStream reads memory from the LiME module, over loopback TCP. Nothing
// passes the stream but once and in order, so there is one reader.
type limeStream struct {
	ranges []lime.Range
	conn   net.Conn
	kernel kernel
	loaded chan error // how loading ended; one value, once the image is sent

	mu     sync.Mutex
	opened bool // owned by mu
}

// kernel is what a stream needs of the running kernel.
type kernel struct {
	load   func(path, parameters string) error
	unload func() error
}

func probeLime(o Options) error {
	if _, err := os.Stat("/sys/module/lime"); err == nil {
		return refuse("lime", InUse, "a module lime is loaded already")
	}
	_, err := findModule(o)
	return err
}

func openLime(ctx context.Context, o Options) (Source, error) {
	if err := probeLime(o); err != nil {
		return nil, err
	}
	path, err := findModule(o)
	if err != nil {
		return nil, err
	}
	ranges, err := hostRAM()
	if err != nil {
		return nil, refuse("lime", Failed, "%v", err)
	}
	return startLime(ctx, path, ranges, kernel{loadModule, unloadModule})
}

// startLime loads the module and connects to it. With any timeout but 0 the
// module writes zeros for the rest of a range when the reader is slow for a
// moment; without localhostonly it listens to everyone. Source: LiME,
// src/tcp.c and src/main.c.
func startLime(ctx context.Context, path string, ranges []lime.Range, k kernel) (*limeStream, error) {
	port, err := freePort()
	if err != nil {
		return nil, refuse("lime", Failed, "%v", err)
	}
	s := &limeStream{ranges: ranges, kernel: k, loaded: make(chan error, 1)}
	go func() { // waited for by Close, through loaded
		s.loaded <- k.load(path, fmt.Sprintf("path=tcp:%d format=lime localhostonly=1 timeout=0", port))
	}()
	if s.conn, err = s.connect(ctx, port); err != nil {
		s.release(port)
		return nil, err
	}
	return s, nil
}

// release lets a load go that waits for its client, and takes the module out
// again.
func (s *limeStream) release(port int) {
	for range unloadTries {
		if conn, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			conn.Close()
		}
		if len(s.loaded) > 0 || s.kernel.unload() == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("cannot find a free port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// connect waits until the module listens, or has failed to load.
func (s *limeStream) connect(ctx context.Context, port int) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, connectLimit, errors.New("the module does not listen"))
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return conn, nil
		}
		select {
		case err := <-s.loaded:
			s.loaded <- err // for release
			if err == nil {
				err = errors.New("the module was loaded and sent nothing")
			}
			return nil, loadRefusal(err)
		case <-ctx.Done():
			return nil, refuse("lime", Failed, "no connection to the module: %v", context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *limeStream) Name() string         { return "lime" }
func (s *limeStream) Ranges() []lime.Range { return s.ranges }
func (s *limeStream) Readers() int         { return 1 }

// Open gives the stream's reader, once.
func (s *limeStream) Open() (Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened {
		return nil, errors.New("cannot read the LiME stream twice")
	}
	s.opened = true
	return &limeReader{conn: s.conn, image: lime.NewReader(s.conn), want: s.ranges}, nil
}

// Close ends the stream and takes the module out of the kernel. The module
// notices at its next write that nobody reads.
func (s *limeStream) Close() error {
	err := s.conn.Close()
	select {
	case <-s.loaded: // its status proves nothing: the reader has counted
	case <-time.After(streamStall):
		return errors.Join(err, errors.New("cannot remove module lime: it does not stop sending"))
	}
	for range unloadTries {
		unloaded := s.kernel.unload()
		if unloaded == nil {
			return err
		}
		err = unloaded
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// limeReader walks the module's image and holds its records against the
// ranges that it must have.
type limeReader struct {
	conn  net.Conn
	image *lime.Reader
	want  []lime.Range // not yet begun
	now   lime.Range   // the record at hand
	next  uint64       // the address of its next byte
	begun bool
}

func (r *limeReader) Close() error { return nil }

func (r *limeReader) ReadPhys(ctx context.Context, p []byte, addr uint64) ([]evidence.Gap, error) {
	stop := context.AfterFunc(ctx, func() { _ = r.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := r.read(ctx, p, addr); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("cannot read LiME stream at %08x: %w", addr, err)
	}
	return nil, nil
}

func (r *limeReader) read(ctx context.Context, p []byte, addr uint64) error {
	for !r.begun || addr > r.now.End {
		if err := r.advance(ctx); err != nil {
			return err
		}
	}
	if addr < r.next {
		return fmt.Errorf("it has passed this address and cannot go back from %08x", r.next)
	}
	if err := r.copy(ctx, nil, addr-r.next); err != nil {
		return err
	}
	if addr+uint64(len(p))-1 > r.now.End {
		return fmt.Errorf("%d bytes reach beyond its record %v", len(p), r.now)
	}
	return r.copy(ctx, p, uint64(len(p)))
}

// advance goes to the next record.
func (r *limeReader) advance(ctx context.Context) error {
	if r.begun && r.next <= r.now.End {
		if err := r.copy(ctx, nil, r.now.End-r.next+1); err != nil {
			return err
		}
	}
	r.alive(ctx)
	record, err := r.image.Next()
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: the image ends %d ranges early", io.ErrUnexpectedEOF, len(r.want))
	}
	if err != nil {
		return err
	}
	if len(r.want) == 0 || record != r.want[0] {
		return fmt.Errorf("its record %v is not the RAM that /proc/iomem has there", record)
	}
	r.want, r.now, r.next, r.begun = r.want[1:], record, record.Start, true
	return nil
}

// copy reads n bytes of the record, into p or into nothing.
func (r *limeReader) copy(ctx context.Context, p []byte, n uint64) error {
	const step = 1 << 20
	for n > 0 {
		r.alive(ctx)
		some := int(min(n, step))
		var err error
		if p == nil {
			_, err = io.CopyN(io.Discard, r.image, int64(some))
		} else {
			_, err = io.ReadFull(r.image, p[:some])
			p = p[some:]
		}
		if err != nil {
			return err
		}
		n, r.next = n-uint64(some), r.next+uint64(some)
	}
	return nil
}

// alive gives the stream another while to move.
func (r *limeReader) alive(ctx context.Context) {
	if ctx.Err() == nil {
		_ = r.conn.SetDeadline(time.Now().Add(streamStall))
	}
}
