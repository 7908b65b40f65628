package wire

import (
	"slices"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

func TestWordsSurviveTheWire(t *testing.T) {
	for _, f := range []evidence.Format{evidence.LiME, evidence.JSONL, evidence.Tar} {
		if got, err := FormatOf(f).Evidence(); err != nil || got != f {
			t.Errorf("%s became %s, %v", f, got, err)
		}
	}
	for _, c := range []evidence.Compression{evidence.None, evidence.Zstd} {
		if got, err := CompressionOf(c).Evidence(); err != nil || got != c {
			t.Errorf("%s became %s, %v", c, got, err)
		}
	}
	ranges := []lime.Range{{Start: 0x1000, End: 0x9fbff}, {Start: 0x100000, End: 0x1ffdffff}}
	if got, err := Ranges(RangesOf(ranges)); err != nil || !slices.Equal(got, ranges) {
		t.Errorf("ranges became %v, %v", got, err)
	}
	gaps := []evidence.Gap{{Range: ranges[0], Reason: evidence.ReadError, Errno: "EFAULT"}}
	if got, err := Gaps(GapsOf(gaps)); err != nil || !slices.Equal(got, gaps) {
		t.Errorf("gaps became %v, %v", got, err)
	}
}

func TestWhatAPeerMayNotSay(t *testing.T) {
	if _, err := Format(99).Evidence(); err == nil {
		t.Error("an unknown format was taken")
	}
	if _, err := Compression(99).Evidence(); err == nil {
		t.Error("an unknown compression was taken")
	}
	if c, err := Compression_COMPRESSION_UNSPECIFIED.Evidence(); err != nil || c != evidence.Zstd {
		t.Errorf("an open compression is %s, %v", c, err)
	}
	for name, ranges := range map[string][]*PhysicalRange{
		"too many":                 make([]*PhysicalRange, MaxRanges+1),
		"an end before its start":  {{Start: 2, End: 1}},
		"all of the address space": {{Start: 0, End: ^uint64(0)}},
		"out of order":             {{Start: 10, End: 20}, {Start: 0, End: 5}},
		"overlapping":              {{Start: 0, End: 10}, {Start: 10, End: 20}},
	} {
		if _, err := Ranges(ranges); err == nil {
			t.Errorf("ranges, %s: taken", name)
		}
	}
	for name, gap := range map[string]*Gap{
		"no range to speak of": {Range: &PhysicalRange{Start: 1, End: 0}, Reason: "offline"},
		"a reason in prose":    {Range: &PhysicalRange{Start: 0, End: 1}, Reason: "it did not work"},
		"a long errno":         {Range: &PhysicalRange{Start: 0, End: 1}, Reason: "offline", Errno: strings.Repeat("E", 41)},
	} {
		if _, err := Gaps([]*Gap{gap}); err == nil {
			t.Errorf("a gap with %s: taken", name)
		}
	}
}

func FuzzGaps(f *testing.F) {
	f.Add(uint64(0), uint64(9), "offline", "EIO")
	f.Fuzz(func(t *testing.T, start, end uint64, reason, errno string) {
		gaps, err := Gaps([]*Gap{{Range: &PhysicalRange{Start: start, End: end}, Reason: reason, Errno: errno}})
		if err == nil && (gaps[0].Range.Len() == 0 || len(gaps[0].Errno) > 40 || !evidence.ValidName(string(gaps[0].Reason))) {
			t.Fatalf("%+v was taken", gaps[0])
		}
	})
}
