package guest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

const sampleIOMem = `00000000-00000fff : Reserved
00001000-0009fbff : System RAM
000a0000-000bffff : PCI Bus 0000:00
00100000-1ffdffff : System RAM
  15000000-15e021d0 : Kernel code
  16000000-16000fff : System RAM
100000000-13fffffff : System RAM (kmem)
140000000-17fffffff : System RAM`

func TestSystemRAM(t *testing.T) {
	got, err := systemRAM(sampleIOMem)
	want := []Range{{0x1000, 0x9fbff}, {0x100000, 0x1ffdffff}, {0x140000000, 0x17fffffff}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %x, %v; want %x", got, err, want)
	}
	if got := want[0].Size(); got != 0x9ec00 {
		t.Errorf("size %#x, want 0x9ec00", got)
	}
}

func TestSystemRAMRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"empty":       "",
		"no RAM":      "00000000-00000fff : Reserved\n",
		"only nested": "  00000000-00000fff : System RAM\n",
		"reversed":    "2000-1000 : System RAM\n",
		"overlap":     "1000-2fff : System RAM\n2000-3fff : System RAM\n",
		"descending":  "100000-1fffff : System RAM\n1000-1fff : System RAM\n",
		"no dash":     "1000 : System RAM\n",
		"not hex":     "1000-zzzz : System RAM\n",
		"too long":    "1000-fffffffffffffffff : System RAM\n",
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := systemRAM(text); err == nil {
				t.Errorf("accepted as %x", got)
			}
		})
	}
	if _, err := systemRAM("00000000-00000000 : System RAM\n"); !errors.Is(err, errHidden) {
		t.Errorf("hidden addresses gave %v", err)
	}
}

func FuzzSystemRAM(f *testing.F) {
	f.Add(sampleIOMem)
	f.Add("0-ffffffffffffffff : System RAM")
	f.Add("1-0 : System RAM\n : System RAM")
	f.Fuzz(func(t *testing.T, text string) {
		ranges, err := systemRAM(text)
		if err != nil {
			return
		}
		var again string
		for _, r := range ranges {
			again += fmt.Sprintf("%08x-%08x : System RAM\n", r.Start, r.End)
		}
		if back, err := systemRAM(again); err != nil || !slices.Equal(back, ranges) {
			t.Errorf("%x printed and read is %x, %v", ranges, back, err)
		}
	})
}
