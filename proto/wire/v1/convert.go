package wire

import (
	"fmt"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
	"github.com/quicklime-ir/quicklime/proto/seekable"
)

// Bounds of lists in one message; a longer one is refused whole.
const (
	MaxRanges = 4096
	MaxGaps   = evidence.MaxGaps

	MaxDefinitionFiles  = 64        // of an ArtifactCapture
	MaxDefinitionBytes  = 256 << 10 // of one file
	MaxDefinitionsBytes = 2 << 20   // of all, as an agent takes no message of more than 4 MiB
	MaxProcessMemory    = 64
)

var formats = map[evidence.Format]Format{
	evidence.LiME:  Format_FORMAT_LIME,
	evidence.JSONL: Format_FORMAT_JSONL,
	evidence.Tar:   Format_FORMAT_TAR,
	evidence.Text:  Format_FORMAT_TEXT,
}

var compressions = map[evidence.Compression]Compression{
	evidence.None: Compression_COMPRESSION_NONE,
	evidence.Zstd: Compression_COMPRESSION_ZSTD,
}

// FormatOf turns an item's format into its wire form.
func FormatOf(f evidence.Format) Format { return formats[f] }

// Evidence is the format's word; an unknown one is an error.
func (x Format) Evidence() (evidence.Format, error) {
	for word, w := range formats {
		if w == x {
			return word, nil
		}
	}
	return "", fmt.Errorf("unknown format %d", int32(x))
}

// CompressionOf turns a compression into its wire form.
func CompressionOf(c evidence.Compression) Compression {
	if c == evidence.Auto {
		return Compression_COMPRESSION_AUTO
	}
	return compressions[c]
}

// Ordered is the compression that an order asks for, auto where it leaves it
// open; an unknown one is an error.
func (x Compression) Ordered() (evidence.Compression, error) {
	if x == Compression_COMPRESSION_UNSPECIFIED || x == Compression_COMPRESSION_AUTO {
		return evidence.Auto, nil
	}
	return x.Evidence()
}

// Evidence is the compression of an item, zstd where the sender left it open;
// an unknown one is an error, and so is auto.
func (x Compression) Evidence() (evidence.Compression, error) {
	if x == Compression_COMPRESSION_UNSPECIFIED {
		return evidence.Zstd, nil
	}
	for word, w := range compressions {
		if w == x {
			return word, nil
		}
	}
	return "", fmt.Errorf("unknown compression %d", int32(x))
}

// RangesOf turns physical ranges into their wire form.
func RangesOf(ranges []lime.Range) []*PhysicalRange {
	var out []*PhysicalRange
	for _, r := range ranges {
		out = append(out, &PhysicalRange{Start: r.Start, End: r.End})
	}
	return out
}

// Ranges reads a peer's physical ranges: bounded, ascending, disjoint.
func Ranges(in []*PhysicalRange) ([]lime.Range, error) {
	if len(in) > MaxRanges {
		return nil, fmt.Errorf("%d ranges in a message, want %d at most", len(in), MaxRanges)
	}
	var out []lime.Range
	for i, w := range in {
		r := lime.Range{Start: w.GetStart(), End: w.GetEnd()}
		if r.End < r.Start || r.Len() == 0 || i > 0 && r.Start <= out[i-1].End {
			return nil, fmt.Errorf("range %v is empty or does not come after the one before it", r)
		}
		out = append(out, r)
	}
	return out, nil
}

// GapsOf turns gaps into their wire form.
func GapsOf(gaps []evidence.Gap) []*Gap {
	var out []*Gap
	for _, g := range gaps {
		out = append(out, &Gap{Range: &PhysicalRange{Start: g.Range.Start, End: g.Range.End}, Reason: string(g.Reason), Errno: g.Errno})
	}
	return out
}

// Gaps reads a peer's gaps: bounded in number and in the length of their
// words.
func Gaps(in []*Gap) ([]evidence.Gap, error) {
	if len(in) > MaxGaps {
		return nil, fmt.Errorf("%d gaps in a message, want %d at most", len(in), MaxGaps)
	}
	var out []evidence.Gap
	for _, w := range in {
		r := lime.Range{Start: w.GetRange().GetStart(), End: w.GetRange().GetEnd()}
		if r.End < r.Start || r.Len() == 0 {
			return nil, fmt.Errorf("gap %v is empty", r)
		}
		if !evidence.ValidName(w.GetReason()) || len(w.GetErrno()) > 40 {
			return nil, fmt.Errorf("gap %v has reason %.40q and errno %.40q, want short codes", r, w.GetReason(), w.GetErrno())
		}
		out = append(out, evidence.Gap{Range: r, Reason: evidence.Reason(w.GetReason()), Errno: w.GetErrno()})
	}
	return out, nil
}

// FramesOf turns a part's frames into their wire form.
func FramesOf(frames []seekable.Frame) []*Frame {
	var out []*Frame
	for _, f := range frames {
		out = append(out, &Frame{Stored: f.Stored, Raw: f.Raw})
	}
	return out
}

// Frames reads a peer's frames: bounded, none of them empty, and together as
// many bytes as the part has.
func Frames(in []*Frame, size, raw uint64) ([]seekable.Frame, error) {
	if len(in) == 0 {
		return nil, nil
	}
	if len(in) > evidence.MaxFrames {
		return nil, fmt.Errorf("%d frames in a part, want %d at most", len(in), evidence.MaxFrames)
	}
	var out []seekable.Frame
	for _, f := range in {
		if f.GetStored() == 0 {
			return nil, fmt.Errorf("a frame of no bytes in a part")
		}
		size, raw = size-uint64(f.GetStored()), raw-uint64(f.GetRaw())
		out = append(out, seekable.Frame{Stored: f.GetStored(), Raw: f.GetRaw()})
	}
	if size != 0 || raw != 0 {
		return nil, fmt.Errorf("%d frames whose sizes do not add up to the part's", len(in))
	}
	return out, nil
}
