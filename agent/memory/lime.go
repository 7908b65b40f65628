package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Bounds of a LiME stream.
const (
	connectLimit = 20 * time.Second // from loading the module to its first header
	streamStall  = 30 * time.Second // without a byte
	releaseLimit = 30 * time.Second // from giving up to the end of the load
	retryPause   = 20 * time.Millisecond
	unloadTries  = 50 // a tenth of a second apart
)

// limeStream reads memory from the LiME module, over loopback TCP. Nothing
// passes the stream but once and in order, so there is one reader.
type limeStream struct {
	ranges []lime.Range
	conn   net.Conn
	kernel kernel
	loaded chan error // how loading ended; one value, once the image is sent
	stall  time.Duration
	alloc  func() ([]byte, func())

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
	path, err := findModule(o)
	if err != nil {
		return err
	}
	return mayLoad(path)
}

func openLime(ctx context.Context, o Options) (Source, error) {
	if err := probeLime(o); err != nil {
		return nil, err
	}
	path, err := findModule(o)
	if err != nil {
		return nil, err
	}
	ranges, err := limeRAM()
	if err != nil {
		return nil, err
	}
	s, err := startLime(ctx, path, ranges, kernel{loadModule, unloadModule})
	if err != nil {
		return nil, err
	}
	s.alloc = o.alloc
	return s, nil
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
	s := &limeStream{ranges: ranges, kernel: k, loaded: make(chan error, 1), stall: streamStall, alloc: Options{}.alloc}
	go func() { // waited for by Close or release, through loaded
		s.loaded <- k.load(path, fmt.Sprintf("path=tcp:%d format=lime localhostonly=1 timeout=0", port))
	}()
	if s.conn, err = s.connect(ctx, port); err != nil {
		if left := s.release(port); left != nil {
			return nil, refuse("lime", Failed, "%v; %v", err, left)
		}
		return nil, err
	}
	return s, nil
}

// release ends a load that nobody wants any more. Neither a load that has not
// come to listening yet nor one that waits for its client can be called off:
// it is given a client that leaves at once, until it has ended.
func (s *limeStream) release(port int) error {
	end := time.After(releaseLimit)
	dialer := net.Dialer{Timeout: time.Second}
	for {
		if conn, err := dialer.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			conn.Close()
		}
		select {
		case err := <-s.loaded:
			return s.unload(err)
		case <-end:
			return errors.New("cannot remove module lime: its loading does not end")
		case <-time.After(retryPause):
		}
	}
}

// unload takes the module out of the kernel, if its load ended well. One that
// did not load is not there, and another's of the same name is not ours.
func (s *limeStream) unload(loaded error) error {
	if loaded != nil {
		return nil
	}
	var err error
	for range unloadTries {
		if err = s.kernel.unload(); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
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
		case <-time.After(retryPause):
		}
	}
}

func (s *limeStream) Name() string         { return "lime" }
func (s *limeStream) Ranges() []lime.Range { return s.ranges }
func (s *limeStream) Readers() int         { return 1 }
func (s *limeStream) PageFlags() string    { return "not asked for" }

func (s *limeStream) Order(_ context.Context, parts [][]lime.Range) []int { return ascending(parts) }

// Open gives the stream's reader, once.
func (s *limeStream) Open() (Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened {
		return nil, errors.New("cannot read the LiME stream twice")
	}
	s.opened = true
	buffer, free := s.alloc()
	return &limeReader{buffer: buffer, free: free, conn: s.conn, image: lime.NewReader(s.conn), want: slices.Clone(s.ranges), stall: s.stall}, nil
}

// Close ends the stream and takes the module out of the kernel. The module
// notices at its next write that nobody reads.
func (s *limeStream) Close() error {
	err := s.conn.Close()
	select {
	case loaded := <-s.loaded: // it says nothing of the image: the reader has counted
		return errors.Join(err, s.unload(loaded))
	case <-time.After(s.stall):
		return errors.Join(err, errors.New("cannot remove module lime: it does not stop sending"))
	}
}

// limeReader walks the module's image and holds its records against the
// ranges that it must have. A range may come in several records: LiME makes
// one of each line of /proc/iomem, also where lines are neighbours.
type limeReader struct {
	conn  net.Conn
	image *lime.Reader
	want  []lime.Range // what later records must cover
	now   lime.Range   // the record at hand
	next  uint64       // the address of its next byte
	begun bool
	stall time.Duration

	buffer []byte
	free   func()
}

func (r *limeReader) Close() error {
	r.free()
	return nil
}

func (r *limeReader) ReadPhys(ctx context.Context, addr uint64, n int) ([]byte, []evidence.Gap, error) {
	if err := checkRead(addr, n); err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	gaps, err := r.read(ctx, r.buffer[:n], addr)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, nil, fmt.Errorf("cannot read LiME stream at %08x: %w", addr, err)
	}
	return r.buffer[:n], gaps, nil
}

func (r *limeReader) read(ctx context.Context, p []byte, addr uint64) (gaps []evidence.Gap, err error) {
	for len(p) > 0 {
		for !r.begun || addr > r.now.End {
			if err := r.advance(ctx); err != nil {
				return nil, err
			}
		}
		if addr < r.next {
			return nil, fmt.Errorf("it has passed this address and cannot go back from %08x", r.next)
		}
		if err := r.copy(ctx, nil, addr-r.next); err != nil {
			return nil, err
		}
		n := int(min(uint64(len(p)), r.now.End-addr+1))
		if err := r.copy(ctx, p[:n], uint64(n)); err != nil {
			return nil, err
		}
		gaps = padding(gaps, r.now, addr, n)
		p, addr = p[n:], addr+uint64(n)
	}
	return gaps, nil
}

// padding adds what of the n bytes at addr LiME made up: it writes zeros for
// the last bytes of a record that fill no page. Source: LiME, src/main.c.
func padding(gaps []evidence.Gap, record lime.Range, addr uint64, n int) []evidence.Gap {
	start, end := record.End-record.Len()%pageSize+1, addr+uint64(n)-1
	if start == record.End+1 || end < start {
		return gaps
	}
	start = max(start, addr)
	return add(gaps, start, int(end-start+1), NotInSource, "")
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
		return fmt.Errorf("%w: the image ends before %d ranges are whole", io.ErrUnexpectedEOF, len(r.want))
	}
	if err != nil {
		return err
	}
	if len(r.want) == 0 || record.Start != r.want[0].Start || record.End > r.want[0].End {
		return fmt.Errorf("its record %v is not the RAM that /proc/iomem has there", record)
	}
	if record.End == r.want[0].End {
		r.want = r.want[1:]
	} else {
		r.want[0].Start = record.End + 1
	}
	r.now, r.next, r.begun = record, record.Start, true
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
		_ = r.conn.SetDeadline(time.Now().Add(r.stall))
	}
}
