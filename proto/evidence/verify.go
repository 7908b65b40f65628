package evidence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Objects is where stored evidence is read from.
type Objects interface {
	// Open gives the bytes of one object, from its first to its last.
	Open(ctx context.Context, key string) (io.ReadCloser, error)
	// OpenRange gives length bytes of one object from offset on, and fewer
	// where it ends before, down to none at or after its end. It may be called
	// by many goroutines.
	OpenRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)
}

// Options say how to verify.
type Options struct {
	// Parallel is how many items, or parts of images, are read at a time; 0 is
	// one for each processor.
	Parallel int
}

// Report is what Verify found, in the manifest's order.
type Report struct {
	Items []ItemReport
	OK    bool // every check of every item holds
}

// ItemReport is what Verify found out about one item. What it counts and
// hashes are the bytes as read, not what the manifest says of them.
type ItemReport struct {
	Key    string
	Kind   Kind
	Status Status // as the manifest has it
	Error  string // why the item is partial, as the manifest has it
	Size   uint64 // bytes read
	// SHA256 is of all bytes read, as hex. It is "" where none were, and of an
	// image, whose parts are read side by side: Composite stands for it.
	SHA256    string
	Composite string       // as S3 computes it, of the parts as read; "" where none were
	Ranges    []lime.Range // memory that was walked, record by record
	Missing   []lime.Range // memory that no stored part holds
	PageFlags string       // of an image, as the manifest has it
	Gaps      int
	GapBytes  uint64      // missing memory included; at most math.MaxUint64
	Reasons   []GapReason // the same, by reason, ascending
	Checks    []Check
	Notes     []string // what could not be asked, and why
}

// GapReason is how many gaps an image has for one reason.
type GapReason struct {
	Reason Reason
	Gaps   int
	Bytes  uint64
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
// the whole, and that the bytes are the format that they should be. The parts
// of an image are read side by side, as each begins with a record and a frame
// of its own. It holds no more than a zstd window and a few hundred KiB, or
// one line of a table, for each of Options.Parallel, and a seek table for
// each image, whatever the bytes are. What is wrong is in the report; the
// error is ctx's own, of a verification that did not come to its end.
func Verify(ctx context.Context, objects Objects, m Manifest, o Options) (Report, error) {
	if o.Parallel <= 0 {
		o.Parallel = runtime.GOMAXPROCS(0)
	}
	report := Report{Items: make([]ItemReport, len(m.Items)), OK: true}
	images := make([]*image, len(m.Items))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(o.Parallel)
	work := func(do func()) {
		group.Go(func() error {
			if ctx.Err() == nil {
				do()
			}
			return context.Cause(ctx)
		})
	}
	for i, item := range m.Items {
		r := &report.Items[i]
		*r = begin(item)
		switch {
		case len(item.Parts) == 0 || ctx.Err() != nil:
		case item.Format == LiME:
			images[i] = newImage(ctx, objects, item)
			for n := range item.Parts {
				work(func() { images[i].readPart(n) })
			}
		default:
			work(func() { verifyStream(ctx, objects, item, r) })
		}
	}
	if err := group.Wait(); err != nil {
		return Report{}, fmt.Errorf("cannot verify evidence: %w", err)
	}
	for i := range report.Items {
		if images[i] != nil {
			images[i].tell(&report.Items[i])
		}
		report.OK = report.OK && report.Items[i].OK()
	}
	return report, nil
}

// begin tells of an item what the manifest alone can tell.
func begin(item Item) ItemReport {
	r := ItemReport{Key: item.Key, Kind: item.Kind, Status: item.Status, Error: item.Error, Missing: item.Missing(), PageFlags: item.PageFlags}
	reasons := map[Reason]GapReason{}
	for _, gap := range item.Gaps() {
		r.Gaps++
		r.GapBytes = add(r.GapBytes, gap.Range.Len())
		sum := reasons[gap.Reason]
		reasons[gap.Reason] = GapReason{gap.Reason, sum.Gaps + 1, add(sum.Bytes, gap.Range.Len())}
	}
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		r.Reasons = append(r.Reasons, reasons[reason])
	}
	r.check("manifest", checkItem(item))
	if item.Format == LiME {
		r.check("truth map", checkImage(item))
	}
	return r
}

// verifyStream reads an item from its first byte to its last.
func verifyStream(ctx context.Context, objects Objects, item Item, r *ItemReport) {
	src, err := objects.Open(ctx, item.Key)
	r.check("object", err)
	if err != nil {
		return
	}
	defer src.Close()
	object := newObject(ctx, src, item.Parts)
	detail, err := walk(object, item)
	_, _ = io.Copy(io.Discard, object) // what the walk left; object keeps its error
	r.Size, r.SHA256, r.Composite = object.size, object.SHA256().String(), Composite(object.read)
	r.Checks = append(r.Checks, object.checks()...)
	r.checkComposite(item)
	r.check(string(item.Format), err)
	if err == nil {
		r.Checks[len(r.Checks)-1].Detail = detail
	}
}

// checkComposite compares the hash of the parts' hashes.
func (r *ItemReport) checkComposite(item Item) {
	var err error
	if item.SHA256 != r.Composite {
		err = fmt.Errorf("the object's is %s, the manifest's %.100q", r.Composite, item.SHA256)
	}
	r.check("composite", err)
}

// check adds the answer to one question.
func (r *ItemReport) check(name string, err error) {
	c := Check{Name: name, OK: err == nil}
	if err != nil {
		c.Detail = err.Error()
	}
	r.Checks = append(r.Checks, c)
}

// Check holds what a manifest says of an item against itself: the order of its
// parts, their size, and of an image which memory they hold.
func (i Item) Check() error {
	err := checkItem(i)
	if i.Format == LiME {
		err = errors.Join(err, checkImage(i))
	}
	return err
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

// checkImage holds the truth map of an image against the memory that its
// parts should hold: part N the Nth stretch of its RAM, each gap in the memory
// of its part, and the seek table none of it.
func checkImage(item Item) error {
	parts := lime.Parts(item.RAM, item.PartRAMBytes)
	if parts < 1 || parts > MaxParts || !ascending(item.RAM) {
		return fmt.Errorf("its RAM of %d ranges would be in %d parts of %d bytes, want ascending ranges in 1 to %d", len(item.RAM), parts, item.PartRAMBytes, MaxParts)
	}
	plan := lime.Plan(item.RAM, item.PartRAMBytes)
	data, table := item.Split()
	var faults []string
	fault := func(format string, args ...any) {
		if len(faults) < maxFaults {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	for _, p := range data {
		if n := int(p.Number); n < 1 || n > len(plan) || !slices.Equal(p.Ranges, plan[n-1]) {
			fault("part %d does not hold the memory that is planned for it", p.Number)
		} else if err := CheckGaps(p); err != nil {
			fault("part %d: %v", p.Number, err)
		}
	}
	if table != nil && (table.RawSize != 0 || len(table.Ranges) > 0 || len(table.Gaps) > 0) {
		fault("part %d, the seek table, is said to hold memory", table.Number)
	}
	if len(faults) == 0 {
		return nil
	}
	return errors.New(strings.Join(faults, "; "))
}

// ascending reports whether ranges are none of them empty, in order, and apart.
func ascending(ranges []lime.Range) bool {
	for i, r := range ranges {
		if r.End < r.Start || r.Len() == 0 || i > 0 && r.Start <= ranges[i-1].End {
			return false
		}
	}
	return true
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
