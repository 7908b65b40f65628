package proof

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// Bounds of a Reader. A part that is larger than maxHeld is read twice, to be
// hashed and then to be given. RFC 8878, section 3.1.1.1.2, asks a window of
// maxWindow of every decoder.
const (
	maxHeld   = 32 << 20
	maxWindow = 8 << 20
)

// Reader gives an item as it was before compression. The bytes of a part come
// out only after its stored bytes had the hash that the manifest says. It holds
// maxHeld and a zstd window. An error about the evidence is ErrNotProven.
type Reader struct {
	parts   *partReader
	decoder *zstd.Decoder // nil where nothing is compressed
	raw     io.Reader
	left    uint64 // bytes that the parts say are still to come
	err     error  // why there is no more
}

// NewReader opens an item: its parts up to the first that is not stored. The
// caller closes it.
func NewReader(ctx context.Context, objects evidence.Objects, item evidence.Item) (*Reader, error) {
	r := &Reader{parts: &partReader{ctx: ctx, objects: objects, item: item}}
	for i, p := range item.Parts {
		if int(p.Number) != i+1 {
			break
		}
		if p.Size < 1 || p.Size > evidence.MaxPartBytes || p.RawSize > 1<<50 {
			return nil, fmt.Errorf("%w: %s has a part of %d bytes, %d before compression", ErrNotProven, item.Key, p.Size, p.RawSize)
		}
		r.parts.todo = append(r.parts.todo, p)
		r.left += p.RawSize
	}
	r.raw = r.parts
	if item.Compression == evidence.Zstd {
		decoder, err := zstd.NewReader(r.parts, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("cannot decompress %s: %w", item.Key, err)
		}
		r.decoder, r.raw = decoder, decoder
	}
	return r, nil
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	n, err := r.raw.Read(p)
	if uint64(n) > r.left {
		n, r.left = int(r.left), 0
		r.err = fmt.Errorf("%w: %s has more bytes than the manifest says", ErrNotProven, r.parts.item.Key)
		return n, r.err
	}
	r.left -= uint64(n)
	switch {
	case errors.Is(err, io.EOF) && r.left > 0:
		r.err = fmt.Errorf("%w: %s has %d bytes less than the manifest says", ErrNotProven, r.parts.item.Key, r.left)
	case errors.Is(err, io.EOF):
		r.err = io.EOF
	case err != nil:
		r.err = fmt.Errorf("cannot read %s: %w", r.parts.item.Key, err)
	}
	return n, r.err
}

// Close closes what is open.
func (r *Reader) Close() error {
	if r.decoder != nil {
		r.decoder.Close()
	}
	return r.parts.shut()
}

// partReader gives the stored bytes of one part after the other.
type partReader struct {
	ctx     context.Context // of the reading, as an io.Reader has none
	objects evidence.Objects
	item    evidence.Item
	todo    []evidence.Part
	offset  int64
	held    []byte
	now     io.Reader     // of the part that is being given; nil before the first
	open    io.ReadCloser // behind now, where the part is not held
}

// Read implements io.Reader.
func (p *partReader) Read(b []byte) (int, error) {
	for {
		if p.now != nil {
			n, err := p.now.Read(b)
			if n > 0 || err != nil && !errors.Is(err, io.EOF) {
				return n, err
			}
			if err == nil {
				continue
			}
			p.now = nil
			if err := p.shut(); err != nil {
				return 0, err
			}
		}
		if len(p.todo) == 0 {
			return 0, io.EOF
		}
		if err := p.next(); err != nil {
			return 0, err
		}
	}
}

func (p *partReader) shut() error {
	if p.open == nil {
		return nil
	}
	open := p.open
	p.open = nil
	return open.Close()
}

// next hashes a part, and makes it the one that is given.
func (p *partReader) next() error {
	part := p.todo[0]
	src, err := p.objects.OpenRange(p.ctx, p.item.Key, p.offset, int64(part.Size))
	if err != nil {
		return err
	}
	sum := sha256.New()
	into := io.Writer(sum)
	held := bytes.NewBuffer(p.held[:0])
	if part.Size <= maxHeld {
		held.Grow(int(part.Size))
		into = io.MultiWriter(sum, held)
	}
	n, err := io.Copy(into, io.LimitReader(src, int64(part.Size)))
	if err = errors.Join(unread(part, err), src.Close(), p.ctx.Err()); err != nil {
		return err
	}
	if err := wantPart(part, n, sum.Sum(nil)); err != nil {
		return err
	}
	if part.Size <= maxHeld {
		p.held = held.Bytes()
		p.now = bytes.NewReader(p.held)
	} else {
		if p.open, err = p.objects.OpenRange(p.ctx, p.item.Key, p.offset, int64(part.Size)); err != nil {
			return err
		}
		p.now = &again{src: io.LimitReader(p.open, int64(part.Size)), part: part, sum: sha256.New()}
	}
	p.todo = p.todo[1:]
	p.offset += int64(part.Size)
	return nil
}

// again reads a part for the second time, and at its end wants its hash.
type again struct {
	src  io.Reader
	part evidence.Part
	sum  interface {
		io.Writer
		Sum([]byte) []byte
	}
	n int64
}

// Read implements io.Reader.
func (a *again) Read(b []byte) (int, error) {
	n, err := a.src.Read(b)
	a.sum.Write(b[:n])
	a.n += int64(n)
	if errors.Is(err, io.EOF) {
		if wrong := wantPart(a.part, a.n, a.sum.Sum(nil)); wrong != nil {
			err = wrong
		}
		return n, err
	}
	return n, unread(a.part, err)
}

// unread tells that a part's bytes could not be had. It is never
// io.ErrUnexpectedEOF, which stands for evidence that ends too early.
func unread(part evidence.Part, err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("part %d could not be read to its end: %v", part.Number, err)
	case err != nil:
		return fmt.Errorf("part %d could not be read: %w", part.Number, err)
	}
	return nil
}

func wantPart(part evidence.Part, n int64, sum []byte) error {
	if n != int64(part.Size) {
		return fmt.Errorf("%w: part %d is cut after %d of its %d bytes", ErrNotProven, part.Number, n, part.Size)
	}
	if got := evidence.Digest(sum); got != part.SHA256 {
		return fmt.Errorf("%w: part %d has SHA-256 %v, the manifest says %v", ErrNotProven, part.Number, got, part.SHA256)
	}
	return nil
}

// Journal gives the entries of a case's journal that its manifest saw, in an
// unbroken chain, ascending. Any other journal is ErrNotProven.
func Journal(ctx context.Context, objects Objects, m evidence.Manifest) ([]custody.Entry, error) {
	dir := path.Join("cases", m.Case, m.Instance.ID) + "/journal/"
	keys, err := objects.Keys(ctx, dir)
	if err != nil {
		return nil, err
	}
	if len(keys) < m.Journal.Entries {
		return nil, fmt.Errorf("%w: the journal has %d entries, the manifest saw %d", ErrNotProven, len(keys), m.Journal.Entries)
	}
	var chain [][]byte
	for _, k := range keys[:m.Journal.Entries] {
		raw, err := read(ctx, objects, k, maxJournalEntry)
		if err != nil {
			return nil, err
		}
		chain = append(chain, raw)
	}
	head, err := custody.VerifyChain(chain)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotProven, err)
	}
	if head != m.Journal {
		return nil, fmt.Errorf("%w: the journal's entry %d is not the one that the manifest saw", ErrNotProven, m.Journal.Entries)
	}
	entries := make([]custody.Entry, len(chain))
	for i, raw := range chain {
		if err := json.Unmarshal(raw, &entries[i]); err != nil {
			return nil, fmt.Errorf("cannot read the journal's entry %d: %w", i+1, err)
		}
	}
	return entries, nil
}
