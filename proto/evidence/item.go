package evidence

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/quicklime-ir/quicklime/proto/lime"
	"github.com/quicklime-ir/quicklime/proto/seekable"
)

// Limits of S3 that shape every item.
// Source: Amazon S3 User Guide, "Amazon S3 multipart upload limits".
const (
	MaxParts     = 10_000
	MinPartBytes = 5 << 20 // of every part but the last
	MaxPartBytes = 5 << 30
)

// Kind is the capture that an item belongs to; it is also the folder in
// which the item is stored.
type Kind string

// The kinds, in the order in which they are taken.
const (
	Volatile Kind = "volatile" // processes, sockets, sessions: gone in seconds
	Symbols  Kind = "symbols"  // what an analyst needs to read the image: BTF, kallsyms, VMCOREINFO
	Memory   Kind = "memory"   // the LiME image
	Live     Kind = "live"     // logs, histories, persistence: gone in days
)

// Format is the form of an item's bytes before compression; it is also its
// file name's ending.
type Format string

// The formats.
const (
	LiME  Format = "lime"
	JSONL Format = "jsonl"
	Tar   Format = "tar"
	Text  Format = "txt" // lines that are no JSON, such as a bodyfile's
)

// Compression is how an item's bytes are compressed.
type Compression string

// The compressions. Zstd is a sequence of independent frames, so each part
// can be decompressed without the others. Auto is an order's word: the item
// that comes of it is Zstd, with frames stored as they are while compressing
// them would be slower than sending them.
const (
	None Compression = "none"
	Zstd Compression = "zstd"
	Auto Compression = "auto"
)

// Status says how much of an item there is.
type Status string

// The states of an item.
const (
	Whole   Status = "whole"   // every part of it is stored
	Partial Status = "partial" // some parts are; Error says why no more
	Open    Status = "open"    // still being taken
)

// Item is one object of evidence.
type Item struct {
	Kind        Kind        `json:"kind"`
	Name        string      `json:"name"`
	Format      Format      `json:"format"`
	Compression Compression `json:"compression"`
	Source      string      `json:"source,omitempty"` // kcore, lime, proc …
	Key         string      `json:"key"`              // in the bucket
	VersionID   string      `json:"versionId,omitempty"`
	Status      Status      `json:"status"`
	Error       string      `json:"error,omitempty"` // why it is partial
	Size        uint64      `json:"size"`            // bytes of the object
	// SHA256 is the composite hash that S3 keeps for a multipart object:
	// base64 of the hash of the parts' hashes, a dash, the number of parts.
	SHA256 string `json:"sha256Composite,omitempty"`
	Parts  []Part `json:"parts,omitempty"` // ascending by number
	// RAM is the physical memory that a whole image covers, ascending.
	RAM []lime.Range `json:"ram,omitempty"`
	// PartRAMBytes is how much of it each part holds, the last one excepted.
	PartRAMBytes uint64 `json:"partRamBytes,omitempty"`
	// PageFlags is "read" where the pages that the kernel hands out as zeros
	// are told apart by /proc/kpageflags, else why they are not.
	PageFlags string `json:"pageFlags,omitempty"`
}

// Part is a stretch of an item as S3 stores it.
type Part struct {
	Number  int32        `json:"number"` // from 1
	Size    uint64       `json:"size"`   // bytes of the object
	SHA256  Digest       `json:"sha256"` // of those bytes
	RawSize uint64       `json:"rawSize"`
	ETag    string       `json:"etag,omitempty"`
	Ranges  []lime.Range `json:"ranges,omitempty"` // memory: what it holds
	Gaps    []Gap        `json:"gaps,omitempty"`   // memory: what in it is not real
	// Started and Ended tell when the agent read it, by the instance's clock;
	// Monotonic is Started by the clock that counts from boot.
	Started   time.Time     `json:"started"`
	Ended     time.Time     `json:"ended"`
	Monotonic time.Duration `json:"monotonicNs,omitempty"`
	Granted   time.Time     `json:"granted"` // by the collector's clock
	// Frames are the part's stretches that can be decompressed by themselves,
	// for the seek table of an image in zstd; their sizes add up to Size and
	// RawSize. MaxFrames at most. They stay in the collector's ledger: in a
	// manifest they would be too many, and the seek table has them. The part
	// that is the seek table itself has none, and holds no RAM.
	Frames []seekable.Frame `json:"frames,omitempty"`
}

// MaxFrames bounds the frames that a part names.
const MaxFrames = 64

// Reason is a code that says why a range is not real.
type Reason string

// The reasons. Those from Offline on are what /proc/kpageflags says of pages
// that the kernel hands out as zeros; a balloon's pages are Offline since
// Linux 5.1.
const (
	ReadError Reason = "read_error" // the kernel refused to read it; Errno says how
	TimedOut  Reason = "timed_out"  // a read hung and was given up
	NotStored Reason = "not_stored" // the part that held it was never stored
	Offline   Reason = "offline"    // taken from the kernel: balloon, hot-unplugged
	HWPoison  Reason = "hwpoison"   // the hardware reported it broken
	NotBacked Reason = "not_backed" // the kernel keeps no page there
	Mixed     Reason = "mixed"      // more gaps than can be listed, and what lies between them
)

// MaxGaps bounds the gaps that one part lists; those beyond become one, Mixed.
const MaxGaps = 4096

// Gap is a range whose bytes in the image, zeros, are not what the host's
// memory held. A Gap with reason NotStored is not in the image at all.
type Gap struct {
	Range  lime.Range `json:"range"`
	Reason Reason     `json:"reason"`
	Errno  string     `json:"errno,omitempty"`
}

// CheckGaps wants a part's gaps to lie in the memory that it holds; one that
// is Mixed may reach over what lies between two of its ranges.
func CheckGaps(p Part) error {
	var gaps []lime.Range
	for _, g := range p.Gaps {
		switch {
		case g.Reason == NotStored || g.Range.Len() == 0 || g.Range.End < g.Range.Start:
			return fmt.Errorf("gap %v, %.40q is none of a stored part", g.Range, string(g.Reason))
		case g.Reason == Mixed:
			gaps = append(gaps, lime.Range{Start: g.Range.Start, End: g.Range.Start}, lime.Range{Start: g.Range.End, End: g.Range.End})
		default:
			gaps = append(gaps, g.Range)
		}
	}
	if outside := lime.Subtract(gaps, p.Ranges); len(outside) > 0 {
		return fmt.Errorf("gap %v lies outside the part's own memory", outside[0])
	}
	return nil
}

// FoldGaps gives the gaps ascending, and most of them at most: those beyond
// become one, Mixed.
func FoldGaps(gaps []Gap, most int) []Gap {
	out := slices.Clone(gaps)
	slices.SortStableFunc(out, func(a, b Gap) int { return cmp.Compare(a.Range.Start, b.Range.Start) })
	if len(out) <= most {
		return out
	}
	rest := Gap{Range: out[most-1].Range, Reason: Mixed}
	for _, g := range out[most:] {
		rest.Range.End = max(rest.Range.End, g.Range.End)
	}
	return append(out[:most-1], rest)
}

// Digest is a SHA-256, in JSON as hex.
type Digest [sha256.Size]byte

// String gives the digest as hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Base64 gives the digest as S3's headers want it.
func (d Digest) Base64() string { return base64.StdEncoding.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(d) {
		return fmt.Errorf("cannot read SHA-256 %.80q: want 64 hex digits", text)
	}
	copy(d[:], b)
	return nil
}

// Composite is the hash that S3 computes for a multipart object from the
// hashes of its parts, in their order. Source: Amazon S3 User Guide,
// "Checking object integrity", composite checksums.
func Composite(parts []Part) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p.SHA256[:])
	}
	return fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(h.Sum(nil)), len(parts))
}

var itemName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

// ValidName reports whether a name that an agent chose may become part of a
// key: lower-case letters, digits and underscores, 40 at most.
func ValidName(name string) bool { return itemName.MatchString(name) }

// FileName is the last element of the item's key.
func (i Item) FileName() string {
	name := i.Name + "." + string(i.Format)
	if i.Compression == Zstd {
		name += ".zst"
	}
	return name
}

// TableNumber is the number of the part that is the image's seek table: the
// one after the last that holds memory, whether that one is stored or not. It
// is 0 where the item has no table: it is no memory, or not in zstd.
func (i Item) TableNumber() int32 {
	parts := lime.Parts(i.RAM, i.PartRAMBytes)
	if i.Kind != Memory || i.Compression != Zstd || parts < 1 || parts >= MaxParts {
		return 0
	}
	return int32(parts) + 1
}

// Split gives the parts that hold the item's data, and the one that is its
// seek table; nil where there is none.
func (i Item) Split() (data []Part, table *Part) {
	if n := len(i.Parts); n > 0 && i.Parts[n-1].Number == i.TableNumber() {
		return i.Parts[:n-1], &i.Parts[n-1]
	}
	return i.Parts, nil
}

// Missing returns the ranges of RAM that no stored part holds.
func (i Item) Missing() []lime.Range {
	var have []lime.Range
	for _, p := range i.Parts {
		have = append(have, p.Ranges...)
	}
	return lime.Subtract(i.RAM, have)
}

// Gaps returns every gap of the image, ascending: those inside its parts,
// and those of parts that were never stored.
func (i Item) Gaps() []Gap {
	var out []Gap
	for _, p := range i.Parts {
		out = append(out, p.Gaps...)
	}
	for _, r := range i.Missing() {
		out = append(out, Gap{Range: r, Reason: NotStored})
	}
	slices.SortStableFunc(out, func(a, b Gap) int { return cmp.Compare(a.Range.Start, b.Range.Start) })
	return out
}
