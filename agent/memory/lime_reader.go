package memory

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// limeReader walks the module's image and holds its records against the
// ranges that it must have. A range may come in several records: LiME makes
// one of each line of /proc/iomem, also where lines are neighbours.
type limeReader struct {
	stream *limeStream
	want   []lime.Range // what later records must cover
	now    lime.Range   // the record at hand
	next   uint64       // the address of its next byte
	flags  *flagReader
	whole  bool // the image has ended as it must

	buffer []byte
	free   func()
}

func (r *limeReader) Close() error {
	r.free()
	return nil
}

// ReadPhys gives the last bytes of the image only once it is known to be whole,
// and the module's.
func (r *limeReader) ReadPhys(ctx context.Context, addr uint64, n int) ([]byte, []evidence.Gap, error) {
	if err := checkRead(addr, n); err != nil {
		return nil, nil, err
	}
	defer context.AfterFunc(ctx, r.stream.interrupt)()
	gaps, err := r.read(ctx, r.buffer[:n], addr)
	if err == nil && len(r.want) == 0 && r.next == r.now.End+1 && !r.whole {
		err = r.finish(ctx)
		r.whole = err == nil
	}
	if failed := r.stream.failure(); failed != nil {
		err = fmt.Errorf("its bytes may be those of another program that took its port: the module failed to load: %w", failed)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, nil, fmt.Errorf("cannot read LiME stream at %08x: %w", addr, err)
	}
	return r.buffer[:n], r.flags.zeros(gaps, r.buffer[:n], addr), nil
}

func (r *limeReader) read(ctx context.Context, p []byte, addr uint64) (gaps []evidence.Gap, err error) {
	for len(p) > 0 {
		for addr > r.now.End {
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
	if r.next <= r.now.End {
		if err := r.copy(ctx, nil, r.now.End-r.next+1); err != nil {
			return err
		}
	}
	r.alive(ctx)
	record, err := r.stream.image.Next()
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: the image ends before %d ranges are whole", io.ErrUnexpectedEOF, len(r.want))
	}
	if err != nil {
		return err
	}
	return r.begin(record)
}

// begin takes a record at hand, if it is one that must come.
func (r *limeReader) begin(record lime.Range) error {
	if len(r.want) == 0 || record.Start != r.want[0].Start || record.End > r.want[0].End {
		return fmt.Errorf("its record %v is not the RAM that /proc/iomem has there", record)
	}
	if record.End == r.want[0].End {
		r.want = r.want[1:]
	} else {
		r.want[0].Start = record.End + 1
	}
	r.now, r.next = record, record.Start
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
			_, err = io.CopyN(io.Discard, r.stream.image, int64(some))
		} else {
			_, err = io.ReadFull(r.stream.image, p[:some])
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
	_ = r.stream.conn.SetDeadline(time.Now().Add(r.stream.stall))
	if ctx.Err() != nil { // it may have ended just before
		r.stream.interrupt()
	}
}

// finish holds the end of the image against what it must be: nothing comes
// after the last record, what the module has hashed is what came, and the load
// ends.
func (r *limeReader) finish(ctx context.Context) error {
	r.alive(ctx)
	switch record, err := r.stream.image.Next(); {
	case err == nil:
		return fmt.Errorf("its record %v is not RAM by /proc/iomem", record)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("after the last range: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.stream.stall, fmt.Errorf("%w: the load does not end after the last range", os.ErrDeadlineExceeded))
	defer cancel()
	if err := r.stream.compare(ctx); err != nil {
		return err
	}
	select {
	case <-r.stream.ended:
		return nil // how, ReadPhys looks at
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// compare holds the module's hash of what it sent against that of what came.
// The module tells it to whom connects next to the same port, in hexadecimal,
// and waits until somebody does; a module that could not hash tells nothing,
// and ends. Source: LiME, src/hash.c.
func (s *limeStream) compare(ctx context.Context) error {
	if s.hash == nil {
		return nil
	}
	told, err := s.hear(ctx)
	if err != nil {
		s.note("sha256 not told by the module: %v", err)
		return nil
	}
	if want := hex.EncodeToString(s.hash.Sum(nil)); told != want {
		s.note("sha256 differs: the module sent %s, %s came", told, want)
		return fmt.Errorf("the module has sent bytes with SHA-256 %s, these have %s", told, want)
	}
	s.note("sha256 %s", told)
	return nil
}

// hear gives the digest, 64 lower-case hexadecimal digits.
func (s *limeStream) hear(ctx context.Context) (string, error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	told, err := io.ReadAll(io.LimitReader(conn, int64(2*s.hash.Size())+1))
	if _, bad := hex.DecodeString(string(told)); bad != nil || len(told) != 2*s.hash.Size() {
		return "", errors.Join(fmt.Errorf("it sent %.80q", told), err)
	}
	return strings.ToLower(string(told)), nil
}

// hasSHA256 says whether the kernel has a SHA-256 that the module can use now:
// asking for one that it has not would make it run a program to load it, and
// kernels before 5.13 do not survive what the module does where none comes.
// Source: crypto/proc.c, and LiME, src/hash.c.
//
// The plain C one does not count. It slows the module several times, and what
// changes while an image is taken does it more harm than the hash does good.
func hasSHA256() bool {
	f, err := os.Open("/proc/crypto")
	if err != nil {
		return false
	}
	defer f.Close()
	return listsSHA256(io.LimitReader(f, maxCryptoBytes))
}

// maxCryptoBytes bounds /proc/crypto; it has some hundred entries of 300 bytes.
const maxCryptoBytes = 1 << 20

// listsSHA256 looks for an entry, ended by an empty line, of that name, which
// is synchronous, made for the processor, and has passed its test.
func listsSHA256(r io.Reader) bool {
	entry := map[string]string{}
	fits := func() bool {
		return entry["name"] == "sha256" && entry["type"] == "shash" && entry["selftest"] == "passed" && entry["driver"] != "sha256-generic"
	}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "" {
			if fits() {
				return true
			}
			clear(entry)
			continue
		}
		name, value, _ := strings.Cut(lines.Text(), ":")
		entry[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	return fits()
}
