package iomem

import (
	"slices"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

func TestSystemRAM(t *testing.T) {
	tests := []struct {
		name, iomem string
		want        []lime.Range
		err         string
	}{
		{"a small host", "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n00100000-1ffdffff : System RAM\n  01000000-01e0ffff : Kernel code\n",
			[]lime.Range{{Start: 0x1000, End: 0x9fbff}, {Start: 0x100000, End: 0x1ffdffff}}, ""},
		{"memory that was added later", "00100000-00ffffff : System RAM\n100000000-2ffffffff : Persistent Memory\n  100000000-1ffffffff : dax0.0\n    100000000-1ffffffff : System RAM (kmem)\n",
			[]lime.Range{{Start: 0x100000, End: 0xffffff}, {Start: 0x100000000, End: 0x1ffffffff}}, ""},
		{"without CAP_SYS_ADMIN", "00000000-00000000 : System RAM\n00000000-00000000 : System RAM\n", nil, "hidden"},
		{"no RAM", "00000000-00000fff : Reserved\n", nil, "no System RAM"},
		{"not addresses", "zzz-yyy : System RAM\n", nil, "no range"},
		{"an end before its start", "2000-1000 : System RAM\n", nil, "no range"},
	}
	for _, tt := range tests {
		got, err := SystemRAM(strings.NewReader(tt.iomem))
		if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) || tt.err == "" && err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}

func FuzzSystemRAM(f *testing.F) {
	f.Add("00001000-0009fbff : System RAM\n")
	f.Fuzz(func(t *testing.T, text string) {
		ranges, err := SystemRAM(strings.NewReader(text))
		if err == nil && (len(ranges) == 0 || len(ranges) > MaxRanges) {
			t.Fatalf("%d ranges", len(ranges))
		}
	})
}
