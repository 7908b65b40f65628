package evidence

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
)

// maxFaults bounds how many faulty parts a report names one by one.
const maxFaults = 20

// object reads a stored object and hashes it on the way, part by part and as
// a whole. It ends where its parts end, however much there is to read.
type object struct {
	ctx   context.Context // of the verification, as an io.Reader has none
	src   io.Reader
	parts []Part // as they should be
	read  []Part // as they are: number, size, hash
	size  uint64
	fill  uint64 // of the part being read
	part  hash.Hash
	whole hash.Hash
	extra bool  // there are bytes after the last part
	err   error // why there is no more to read; io.EOF after the last part

	faults
}

func newObject(ctx context.Context, src io.Reader, parts []Part) *object {
	return &object{ctx: ctx, src: src, parts: parts, part: sha256.New(), whole: sha256.New()}
}

// Read implements io.Reader. It never reads over the end of a part.
func (o *object) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if o.settle(); o.err != nil {
		return 0, o.err
	}
	if left := o.parts[len(o.read)].Size - o.fill; uint64(len(p)) > left {
		p = p[:left]
	}
	n, err := o.src.Read(p)
	o.part.Write(p[:n])
	o.whole.Write(p[:n])
	o.fill += uint64(n)
	o.size += uint64(n)
	if err == nil {
		err = context.Cause(o.ctx)
	}
	if o.settle(); err != nil && o.err == nil {
		o.cut(err)
	}
	return n, o.err
}

// settle ends each part that is complete, and the object after the last.
func (o *object) settle() {
	for o.err == nil && len(o.read) < len(o.parts) && o.fill == o.parts[len(o.read)].Size {
		o.endPart()
	}
	if o.err == nil && len(o.read) == len(o.parts) {
		var one [1]byte
		n, err := io.ReadFull(o.src, one[:])
		o.extra, o.err = n > 0, io.EOF
		if err != nil && !errors.Is(err, io.EOF) {
			o.err = err
			o.fault("end", fmt.Sprintf("cannot read what comes after the last part: %v", err))
		}
	}
}

// endPart holds a part that was read against what it should be.
func (o *object) endPart() {
	want := o.parts[len(o.read)]
	got := Part{Number: want.Number, Size: o.fill, SHA256: Digest(o.part.Sum(nil))}
	if got.SHA256 != want.SHA256 {
		o.fault(partName(want), wrongHash(got, want, o.parts))
	}
	o.read = append(o.read, got)
	o.fill = 0
	o.part.Reset()
}

// cut tells that the object ended, or failed, inside a part.
func (o *object) cut(err error) {
	want := o.parts[len(o.read)]
	o.err = err
	why := "the object is cut"
	if errors.Is(err, io.EOF) {
		o.err = io.ErrUnexpectedEOF
	} else {
		why = fmt.Sprintf("cannot read on: %v", err)
	}
	o.fault(partName(want), fmt.Sprintf("%s after %d of its %d bytes, and %d more parts are not there", why, o.fill, want.Size, len(o.parts)-len(o.read)-1))
	o.read = append(o.read, Part{Number: want.Number, Size: o.fill, SHA256: Digest(o.part.Sum(nil))})
}

// checks gives what was found about the parts, after the last read.
func (o *object) checks() []Check { return o.faults.checks(o.parts, o.extra) }

// SHA256 is the hash of all bytes read so far.
func (o *object) SHA256() Digest { return Digest(o.whole.Sum(nil)) }

func partName(p Part) string { return fmt.Sprintf("part %d", p.Number) }

// wrongHash says whose hash a part has, if it is another's.
func wrongHash(got, want Part, parts []Part) string {
	text := fmt.Sprintf("its SHA-256 is %v, the manifest's %v", got.SHA256, want.SHA256)
	for _, p := range parts {
		if p.SHA256 == got.SHA256 {
			return text + fmt.Sprintf(": these are the bytes of part %d", p.Number)
		}
	}
	return text
}

// faults gathers what is wrong with an item's parts, maxFaults of them one by
// one.
type faults struct {
	found   []Check
	skipped int
}

func (f *faults) fault(name, detail string) {
	if len(f.found) == maxFaults {
		f.skipped++
		return
	}
	f.found = append(f.found, Check{Name: name, Detail: detail})
}

// checks gives what was found, of an object with bytes after its last part
// where extra is true.
func (f *faults) checks(parts []Part, extra bool) []Check {
	checks := f.found
	if f.skipped > 0 {
		checks = append(checks, Check{Name: "parts", Detail: fmt.Sprintf("%d more parts are not what they should be", f.skipped)})
	}
	if len(checks) == 0 {
		checks = []Check{{Name: "parts", OK: true, Detail: fmt.Sprintf("%d parts have the size and hash that they should", len(parts))}}
	}
	if extra {
		checks = append(checks, Check{Name: "end", Detail: fmt.Sprintf("there are bytes after part %d, the last", parts[len(parts)-1].Number)})
	}
	return checks
}

// prefix reads the first n parts of an object.
type prefix struct {
	*object
	n int
}

// Read implements io.Reader.
func (p prefix) Read(b []byte) (int, error) {
	if p.settle(); p.err == nil && len(p.read) >= p.n {
		return 0, io.EOF
	}
	return p.object.Read(b)
}
