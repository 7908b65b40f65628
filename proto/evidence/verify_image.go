package evidence

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/proto/lime"
	"github.com/quicklime-ir/quicklime/proto/seekable"
)

// image is a stored image whose parts are read side by side, each by itself.
type image struct {
	ctx     context.Context // of the verification
	objects Objects
	item    Item
	offsets []int64 // of the parts; nil where they are no object's
	results []partResult
	// frames gives those of each data part, as the image's seek table has
	// them; nil where it has none. Whoever asks first reads it.
	frames func() ([][]seekable.Frame, error)
}

// partResult is what was found out about one part. It is owned by whoever
// reads the part, until all are read.
type partResult struct {
	read    Part  // as it is: number, size, hash
	opened  bool  // the object is there
	failed  error // why not all of it could be read
	extra   bool  // the object goes on after it
	format  error // what is wrong with its records
	records int
}

func newImage(ctx context.Context, objects Objects, item Item) *image {
	m := &image{ctx: ctx, objects: objects, item: item, results: make([]partResult, len(item.Parts))}
	m.frames = sync.OnceValues(m.readTable)
	offset := uint64(0)
	for _, p := range item.Parts {
		m.offsets = append(m.offsets, int64(offset))
		if offset = add(offset, p.Size); offset >= math.MaxInt64 {
			m.offsets = nil
			return m
		}
	}
	return m
}

// size is the length of the object in bytes.
func (m *image) size() int64 {
	last := len(m.item.Parts) - 1
	return m.offsets[last] + int64(m.item.Parts[last].Size)
}

// readPart reads the nth stored part, hashes it, and walks its records.
func (m *image) readPart(n int) {
	want, result := m.item.Parts[n], &m.results[n]
	result.read.Number = want.Number
	if m.offsets == nil {
		result.failed = errors.New("its place is beyond what an object can have")
		return
	}
	ask := int64(want.Size)
	last := n == len(m.item.Parts)-1
	if last {
		ask++ // to see whether there is more
	}
	src, err := m.objects.OpenRange(m.ctx, m.item.Key, m.offsets[n], max(ask, 1))
	if err != nil {
		result.failed = err
		return
	}
	defer src.Close()
	result.opened = true
	part := &partReader{ctx: m.ctx, src: src, left: want.Size, hash: sha256.New()}
	if _, table := m.item.Split(); table == nil || !last {
		result.records, result.format = m.walkPart(part, n)
	}
	_, _ = io.Copy(io.Discard, part) // what the walk left; part keeps its error
	result.read.Size, result.read.SHA256 = want.Size-part.left, Digest(part.hash.Sum(nil))
	if part.err != nil && !errors.Is(part.err, io.EOF) {
		result.failed = part.err
	}
	if last && part.left == 0 {
		var one [1]byte
		n, err := io.ReadFull(src, one[:])
		result.extra = n > 0
		if err != nil && !errors.Is(err, io.EOF) {
			result.failed = fmt.Errorf("what comes after it: %w", err)
		}
	}
}

// walkPart goes from record to record of a part, and compares the memory that
// they cover with what the part should hold.
func (m *image) walkPart(part *partReader, n int) (records int, err error) {
	want := m.item.Parts[n]
	raw := &bounded{src: part, max: want.RawSize}
	if m.item.Compression == Zstd {
		decoder, err := newDecoder(nil)
		if err != nil {
			return 0, err
		}
		defer decoder.Close()
		stretches := []seekable.Frame(nil)
		if frames, err := m.frames(); err == nil && frames != nil {
			stretches = frames[n]
		}
		if stretches != nil {
			raw.src = &framesReader{src: part, decoder: decoder, frames: stretches}
		} else if err := decoder.Reset(part); err != nil {
			return 0, fmt.Errorf("cannot decompress: %w", err)
		} else {
			raw.src = decoder
		}
	}
	records, err = walkRecords(bufio.NewReaderSize(raw, walkBytes), lime.Merge(want.Ranges))
	if err == nil && raw.n != want.RawSize {
		err = fmt.Errorf("it has %d bytes, the manifest says %d", raw.n, want.RawSize)
	}
	return records, err
}

// walkRecords reads records that must cover exactly the memory in want. It
// keeps no more ranges than there are in want.
func walkRecords(src io.Reader, want []lime.Range) (records int, err error) {
	image := lime.NewReader(src)
	var got []lime.Range
	for {
		record, err := image.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return records, fmt.Errorf("after %d records, last %s: %w", records, lastRange(got), err)
		}
		records++
		if n := len(got); n > 0 && got[n-1].End == record.Start-1 {
			got[n-1].End = record.End
		} else if got = append(got, record); len(got) > len(want) {
			break // one too many, which is told below
		}
	}
	if slices.Equal(got, want) {
		return records, nil
	}
	lack, more := lime.Subtract(want, got), lime.Subtract(got, want)
	return records, fmt.Errorf("it does not cover the memory that it should: %d ranges lack, first %s; %d are too many, first %s",
		len(lack), firstRange(lack), len(more), firstRange(more))
}

// readTable reads the seek table and gives each data part its frames: those
// of a part begin and end with it, and have its bytes.
func (m *image) readTable() ([][]seekable.Frame, error) {
	data, table := m.item.Split()
	if table == nil {
		return nil, nil
	}
	all, err := seekable.ReadTable(objectAt{m}, m.size())
	if err != nil {
		return nil, err
	}
	if uint64(seekable.Size(len(all))) != table.Size {
		return nil, fmt.Errorf("part %d has %d bytes, but a table of %d frames", table.Number, table.Size, len(all))
	}
	out := make([][]seekable.Frame, 0, len(data)+1)
	for _, p := range data {
		n, stored, raw := 0, uint64(0), uint64(0)
		for n < len(all) && n < MaxFrames && stored < p.Size {
			stored, raw = stored+uint64(all[n].Stored), raw+uint64(all[n].Raw)
			n++
		}
		if stored != p.Size || raw != p.RawSize {
			return nil, fmt.Errorf("part %d has %d bytes stored and %d raw, its %d frames %d and %d", p.Number, p.Size, p.RawSize, n, stored, raw)
		}
		out, all = append(out, all[:n:n]), all[n:]
	}
	if len(all) > 0 {
		return nil, fmt.Errorf("it has %d frames that are no part's", len(all))
	}
	return append(out, nil), nil
}

// tell adds what was found out to a report, after all parts were read.
func (m *image) tell(r *ItemReport) {
	var bytes faults
	var read []Part
	var format error
	opened, extra, wrong, records := false, false, 0, 0
	for i, result := range m.results {
		want := m.item.Parts[i]
		read = append(read, result.read)
		r.Size = add(r.Size, result.read.Size)
		opened, extra = opened || result.opened, extra || result.extra
		records += result.records
		switch {
		case errors.Is(result.failed, io.ErrUnexpectedEOF):
			bytes.fault(partName(want), fmt.Sprintf("the object is cut after %d of its %d bytes", result.read.Size, want.Size))
		case result.failed != nil:
			bytes.fault(partName(want), fmt.Sprintf("cannot read on after %d of its %d bytes: %v", result.read.Size, want.Size, result.failed))
		case result.read.SHA256 != want.SHA256:
			bytes.fault(partName(want), wrongHash(result.read, want, m.item.Parts))
		}
		switch {
		case result.format != nil:
			wrong++
			if format == nil {
				format = fmt.Errorf("%s: %w", partName(want), result.format)
			}
		case result.opened:
			r.Ranges = append(r.Ranges, want.Ranges...)
		}
	}
	r.Ranges = lime.Merge(r.Ranges)
	if !opened {
		r.check("object", m.results[0].failed)
		return
	}
	r.check("object", nil)
	r.Checks = append(r.Checks, bytes.checks(m.item.Parts, extra)...)
	r.Composite = Composite(read)
	r.checkComposite(m.item)
	m.tellTable(r)
	if wrong > 1 {
		format = fmt.Errorf("%w; and %d more parts are wrong", format, wrong-1)
	}
	r.check(string(LiME), format)
	if format == nil {
		r.Checks[len(r.Checks)-1].Detail = fmt.Sprintf("%d records walked to the end, %d ranges of memory", records, len(r.Ranges))
	}
}

// tellTable says what the seek table is worth. An older agent's image has
// none, and its parts can be found by the manifest alone.
func (m *image) tellTable(r *ItemReport) {
	if m.item.TableNumber() == 0 {
		return
	}
	frames, err := m.frames()
	r.check("seek table", err)
	last := &r.Checks[len(r.Checks)-1]
	switch {
	case err == nil && frames == nil:
		last.Detail = "there is none"
	case err == nil:
		n := 0
		for _, of := range frames {
			n += len(of)
		}
		last.Detail = fmt.Sprintf("%d frames, each of which opens by itself", n)
	}
}

// objectAt reads an image's object from anywhere.
type objectAt struct{ *image }

// ReadAt implements io.ReaderAt.
func (o objectAt) ReadAt(p []byte, at int64) (int, error) {
	src, err := o.objects.OpenRange(o.ctx, o.item.Key, at, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer src.Close()
	return io.ReadFull(src, p)
}

// partReader reads one part to its end and hashes it.
type partReader struct {
	ctx  context.Context
	src  io.Reader
	left uint64
	hash hash.Hash
	err  error // the first; io.EOF after the part's last byte
}

// Read implements io.Reader. It never reads over the end of the part.
func (r *partReader) Read(p []byte) (int, error) {
	if r.err == nil && r.left == 0 {
		r.err = io.EOF
	}
	if r.err == nil {
		r.err = context.Cause(r.ctx)
	}
	if r.err != nil {
		return 0, r.err
	}
	if uint64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.src.Read(p)
	r.hash.Write(p[:n])
	r.left -= uint64(n)
	if errors.Is(err, io.EOF) && r.left > 0 {
		err = io.ErrUnexpectedEOF
	} else if errors.Is(err, io.EOF) {
		err = nil // the next call says so
	}
	r.err = err
	return n, err
}

// framesReader decompresses a part frame by frame, each by itself, and wants
// of each the bytes that the seek table says.
type framesReader struct {
	src     io.Reader
	decoder *zstd.Decoder
	frames  []seekable.Frame // the first is being read, where it has begun
	begun   bool
	number  int    // of frames that were read
	raw     uint64 // bytes that the first one gave
}

// Read implements io.Reader.
func (r *framesReader) Read(p []byte) (int, error) {
	for len(r.frames) > 0 {
		frame := r.frames[0]
		if !r.begun {
			if err := r.decoder.Reset(io.LimitReader(r.src, int64(frame.Stored))); err != nil {
				return 0, fmt.Errorf("cannot decompress: %w", err)
			}
			r.begun, r.raw = true, 0
		}
		n, err := r.decoder.Read(p)
		r.raw += uint64(n)
		ended := errors.Is(err, io.EOF)
		if r.raw > uint64(frame.Raw) || ended && r.raw != uint64(frame.Raw) {
			return n, fmt.Errorf("frame %d has %d bytes or more, the seek table says %d", r.number+1, r.raw, frame.Raw)
		}
		if ended {
			r.frames, r.begun, err = r.frames[1:], false, nil
			r.number++
		}
		if err != nil {
			return n, fmt.Errorf("frame %d: %w", r.number+1, err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, io.EOF
}

func firstRange(r []lime.Range) string {
	if len(r) == 0 {
		return "none"
	}
	return r[0].String()
}

func lastRange(r []lime.Range) string {
	if len(r) == 0 {
		return "none"
	}
	return r[len(r)-1].String()
}
