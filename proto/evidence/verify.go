package evidence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Objects is where stored evidence is read from.
type Objects interface {
	// Open gives the bytes of one object, from its first to its last.
	Open(ctx context.Context, key string) (io.ReadCloser, error)
}

// Options say how to verify.
type Options struct {
	Parallel int // items at a time; 0 is one for each processor
}

// Report is what Verify found, in the manifest's order.
type Report struct {
	Items []ItemReport
	OK    bool // every check of every item holds
}

// ItemReport is what Verify found out about one item. What it counts and
// hashes are the bytes as read, not what the manifest says of them.
type ItemReport struct {
	Key       string
	Kind      Kind
	Status    Status // as the manifest has it
	Error     string // why the item is partial, as the manifest has it
	Size      uint64 // bytes read
	SHA256    string // of all bytes read, as hex; "" where none were
	Composite string // as S3 computes it, of the parts as read
	Ranges    []lime.Range
	Missing   []lime.Range // memory that no stored part holds
	Gaps      int
	GapBytes  uint64 // missing memory included; at most math.MaxUint64
	Checks    []Check
}

// Check is one question that was asked of an item, and its answer.
type Check struct {
	Name   string
	OK     bool
	Detail string
}

// OK reports whether every check of the item holds.
func (r ItemReport) OK() bool {
	for _, c := range r.Checks {
		if !c.OK {
			return false
		}
	}
	return true
}

// Verify reads every stored item of a manifest once, and holds its bytes
// against what the manifest says: the size and hash of each part, the hash of
// the whole, and that the bytes are the format that they should be. It holds
// no more than one zstd window and one line of an item at a time, whatever
// the bytes are. What is wrong is in the report; the error is ctx's own, of a
// verification that did not come to its end.
func Verify(ctx context.Context, objects Objects, m Manifest, o Options) (Report, error) {
	if o.Parallel <= 0 {
		o.Parallel = runtime.GOMAXPROCS(0)
	}
	report := Report{Items: make([]ItemReport, len(m.Items)), OK: true}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(o.Parallel)
	for i, item := range m.Items {
		group.Go(func() error {
			if ctx.Err() == nil {
				report.Items[i] = verifyItem(ctx, objects, item)
			}
			return context.Cause(ctx)
		})
	}
	if err := group.Wait(); err != nil {
		return Report{}, fmt.Errorf("cannot verify evidence: %w", err)
	}
	for _, r := range report.Items {
		report.OK = report.OK && r.OK()
	}
	return report, nil
}

// verifyItem asks all that can be asked of one item.
func verifyItem(ctx context.Context, objects Objects, item Item) ItemReport {
	r := ItemReport{Key: item.Key, Kind: item.Kind, Status: item.Status, Error: item.Error, Missing: item.Missing()}
	for _, gap := range item.Gaps() {
		r.Gaps++
		r.GapBytes = add(r.GapBytes, gap.Range.Len())
	}
	r.check("manifest", checkItem(item))
	if len(item.Parts) == 0 {
		return r
	}
	src, err := objects.Open(ctx, item.Key)
	r.check("object", err)
	if err != nil {
		return r
	}
	defer src.Close()
	object := newObject(ctx, src, item.Parts)
	detail, err := walk(object, item, &r)
	_, _ = io.Copy(io.Discard, object) // what the walk left; object keeps its error
	r.Size, r.SHA256, r.Composite = object.size, object.SHA256().String(), Composite(object.read)
	r.Checks = append(r.Checks, object.checks()...)
	if item.SHA256 != r.Composite {
		err := fmt.Errorf("the object's is %s, the manifest's %.100q", r.Composite, item.SHA256)
		r.check("composite", err)
	} else {
		r.check("composite", nil)
	}
	r.check(string(item.Format), err)
	if err == nil {
		r.Checks[len(r.Checks)-1].Detail = detail
	}
	return r
}

// check adds the answer to one question.
func (r *ItemReport) check(name string, err error) {
	c := Check{Name: name, OK: err == nil}
	if err != nil {
		c.Detail = err.Error()
	}
	r.Checks = append(r.Checks, c)
}

// checkItem holds what the manifest says of an item against itself.
func checkItem(item Item) error {
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	var size uint64
	last := int32(0)
	for _, p := range item.Parts {
		if p.Number <= last || p.Number > MaxParts {
			fault("part %d comes after part %d", p.Number, last)
			break
		}
		last, size = p.Number, add(size, p.Size)
	}
	if size != item.Size {
		fault("its parts have %d bytes, the item %d", size, item.Size)
	}
	missing := item.Missing()
	switch item.Status {
	case Whole:
		if nothing(item) {
			break
		}
		if len(item.Parts) == 0 || int(last) != len(item.Parts) || len(missing) > 0 {
			fault("it is called whole, but has %d parts up to number %d, and %d ranges of memory are missing", len(item.Parts), last, len(missing))
		}
	case Partial:
	case Open:
		fault("it was still being taken when the manifest was made")
	default:
		fault("it has status %.40q, which is none", string(item.Status))
	}
	if item.Compression != None && item.Compression != Zstd {
		fault("it has compression %.40q, which is none of ours", string(item.Compression))
	}
	if len(faults) == 0 {
		return nil
	}
	return errors.New(strings.Join(faults, "; "))
}

// nothing reports whether an item is whole without a part: what an agent
// stores of an uncompressed stream that ended before its first byte.
func nothing(item Item) bool {
	return len(item.Parts) == 0 && item.Size == 0 && len(item.RAM) == 0 && item.Compression == None && item.Format == JSONL
}

// add is a sum that stops at its largest value, and does not begin again.
func add(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
