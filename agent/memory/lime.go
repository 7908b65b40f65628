package memory

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Bounds of a LiME stream.
const (
	connectLimit = 20 * time.Second // from loading the module to its first header
	streamStall  = 30 * time.Second // without a byte, or from its last one to the end of the load
	releaseLimit = 30 * time.Second // from giving up to the end of the load
	abortAfter   = time.Second      // from giving up to ending the load by force
	retryPause   = 20 * time.Millisecond
	unloadTries  = 50 // a tenth of a second apart
)

// limeStream reads memory from the LiME module, over loopback TCP. Nothing
// passes the stream but once and in order, so there is one reader.
//
// Any local user may listen on the chosen port before the module does, or
// connect to it before the agent does. In the first case the module fails to
// load, so no byte counts until the load has ended well; in the second the
// agent gets no header.
type limeStream struct {
	ranges []lime.Range
	port   int
	kernel kernel
	alloc  func() ([]byte, func())
	flags  *pageFlags
	stall  time.Duration

	ended   chan struct{} // closed when loading has ended
	loadErr error         // how; read after ended

	conn  net.Conn
	image *lime.Reader
	first lime.Range // of its records, whose header has been read
	hash  hash.Hash  // of what the module sent; nil where it does not hash

	digest atomic.Pointer[string] // what Digest says
	mu     sync.Mutex
	opened bool // owned by mu
}

// kernel is what a stream needs of the running kernel.
type kernel struct {
	load   func(parameters string) error
	abort  func() // makes a load fail that is sending
	unload func() error
}

// limeOptions say how to read a stream.
type limeOptions struct {
	digest  bool // the kernel has SHA-256 for the module
	alloc   func() ([]byte, func())
	flags   *pageFlags
	connect time.Duration // 0 is connectLimit
}

func probeLime(o Options) error {
	_, err := usableModule(o)
	return err
}

// usableModule gives the module that openLime loads, or why it cannot be.
func usableModule(o Options) (*module, error) {
	if _, err := os.Stat("/sys/module/lime"); err == nil {
		return nil, refuse("lime", InUse, "a module lime is loaded already")
	}
	m, err := findModule(o)
	if err != nil {
		return nil, err
	}
	return m, hostStanding().mayLoad(m)
}

func openLime(ctx context.Context, o Options) (Source, error) {
	m, err := usableModule(o)
	if err != nil {
		return nil, err
	}
	ranges, err := limeRAM()
	if err != nil {
		return nil, err
	}
	l := &loader{module: m}
	flags := openPageFlags(o.flagsPath(), o.page())
	s, err := startLime(ctx, ranges, kernel{l.load, l.abort, l.unload},
		limeOptions{digest: !o.NoLimeDigest && hasSHA256(), alloc: o.alloc, flags: flags})
	if err != nil {
		return nil, errors.Join(err, flags.close())
	}
	return s, nil
}

// startLime loads the module, connects to it and awaits its first header. With
// any timeout but 0 the module writes zeros for the rest of a range when the
// reader is slow for a moment; without localhostonly it listens to everyone.
// Source: LiME, src/tcp.c and src/main.c.
func startLime(ctx context.Context, ranges []lime.Range, k kernel, o limeOptions) (*limeStream, error) {
	port, err := freePort()
	if err != nil {
		return nil, refuse("lime", Failed, "%v", err)
	}
	s := &limeStream{ranges: ranges, port: port, kernel: k, alloc: o.alloc, flags: o.flags, stall: streamStall, ended: make(chan struct{})}
	parameters := fmt.Sprintf("path=tcp:%d format=lime localhostonly=1 timeout=0", port)
	if o.digest {
		s.hash = sha256.New()
		parameters += " digest=sha256"
	}
	s.note("not asked for: it is turned off, or the kernel's SHA-256 is slow or missing")
	go func() { // waited for by release, through ended
		s.loadErr = k.load(parameters)
		close(s.ended)
	}()
	if err := s.begin(ctx, cmp.Or(o.connect, connectLimit)); err != nil {
		if left := s.release(); left != nil {
			return nil, refuse("lime", Failed, "%v; %v", err, left)
		}
		return nil, err
	}
	return s, nil
}

// begin connects and reads the first header.
func (s *limeStream) begin(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the module has not sent within %s", limit))
	defer cancel()
	var err error
	if s.conn, err = s.dial(ctx); err != nil {
		if s.failure() != nil {
			return loadRefusal(s.loadErr)
		}
		return refuse("lime", Failed, "no connection to the module: %v", err)
	}
	s.image = lime.NewReader(s.conn)
	if s.hash != nil {
		s.image = lime.NewReader(io.TeeReader(s.conn, s.hash))
	}
	s.first, err = s.header(ctx)
	switch {
	case s.failure() != nil:
		return refuse("lime", Failed, "another program may have answered in its place: %v", s.loadErr)
	case ctx.Err() != nil:
		return refuse("lime", Failed, "no image: %v; another program may have connected to it first", context.Cause(ctx))
	case err != nil:
		return refuse("lime", Failed, "no image: %v", err)
	case s.first.Start != s.ranges[0].Start:
		return refuse("lime", Failed, "no image: its first record %v is not the RAM that /proc/iomem has there", s.first)
	}
	return nil
}

// header awaits the first header until the module has failed to load.
func (s *limeStream) header(ctx context.Context) (lime.Range, error) {
	done, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-s.ended:
			if s.loadErr == nil {
				return // what it has sent is on its way
			}
		case <-ctx.Done():
		case <-done:
			return
		}
		s.interrupt()
	}()
	first, err := s.image.Next()
	close(done)
	<-watched
	return first, err
}

// interrupt ends what waits for the connection.
func (s *limeStream) interrupt() { _ = s.conn.SetDeadline(time.Unix(1, 0)) }

// dial connects to the module as soon as it listens; not when its load ends.
func (s *limeStream) dial(ctx context.Context) (net.Conn, error) {
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", s.port))
		if err == nil {
			return conn, nil
		}
		select {
		case <-s.ended:
			return nil, errors.New("its load has ended")
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(retryPause):
		}
	}
}

// failure says how loading failed, nil where it has not.
func (s *limeStream) failure() error {
	select {
	case <-s.ended:
		return s.loadErr
	default:
		return nil
	}
}

// release ends a load that nobody wants any more, and takes the module out of
// the kernel. A load cannot be called off: one that waits for its client, for
// the image or for the digest, is given a client that leaves at once; one whose
// client is another program, and neither reads nor leaves, is made to fail.
func (s *limeStream) release() error {
	if s.conn != nil {
		s.conn.Close()
	}
	began := time.Now()
	dialer := net.Dialer{Timeout: time.Second}
	for {
		select {
		case <-s.ended:
			return s.unload()
		default:
		}
		if conn, err := dialer.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", s.port)); err == nil {
			conn.Close()
		}
		switch waited := time.Since(began); {
		case waited > releaseLimit:
			return errors.New("cannot remove module lime: its loading does not end")
		case waited > abortAfter:
			s.kernel.abort()
		}
		select {
		case <-s.ended:
		case <-time.After(retryPause):
		}
	}
}

// unload takes the module out of the kernel, if its load ended well. One that
// did not load is not there, and another's of the same name is not ours.
func (s *limeStream) unload() error {
	if s.loadErr != nil {
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

func (s *limeStream) Name() string         { return "lime" }
func (s *limeStream) Ranges() []lime.Range { return s.ranges }
func (s *limeStream) Readers() int         { return 1 }
func (s *limeStream) PageFlags() string    { return s.flags.state() }

// Order is ascending, as the module sends.
func (s *limeStream) Order(_ context.Context, parts [][]lime.Range) []int { return ascending(parts) }

// Digest implements Witness.
func (s *limeStream) Digest() string { return *s.digest.Load() }

// note sets what Digest says.
func (s *limeStream) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.digest.Store(&text)
}

// Open gives the stream's reader, once.
func (s *limeStream) Open() (Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened {
		return nil, errors.New("cannot read the LiME stream twice")
	}
	s.opened = true
	buffer, free := s.alloc()
	r := &limeReader{stream: s, want: slices.Clone(s.ranges), flags: s.flags.reader(), buffer: buffer, free: free}
	if err := r.begin(s.first); err != nil {
		free()
		return nil, err
	}
	return r, nil
}

// Close ends the stream and takes the module out of the kernel. The module
// notices at its next write that nobody reads.
func (s *limeStream) Close() error { return errors.Join(s.release(), s.flags.close()) }
