package arena

import (
	"slices"
	"strings"
	"testing"
)

// TestTheProgramIsDropped: the program's pages leave the process, and it goes
// on.
func TestTheProgramIsDropped(t *testing.T) {
	before := field(t, "RssFile")
	dropped, err := DropProgram()
	if err != nil {
		t.Fatal(err)
	}
	after := field(t, "RssFile")
	t.Logf("of %d KiB of the program in memory, mapped %d KiB, %d KiB came back", before>>10, dropped>>10, after>>10)
	if dropped == 0 || after >= before {
		t.Errorf("%d bytes of files resident, %d before", after, before)
	}
}

func TestOnlyCleanPagesOfFilesAreDropped(t *testing.T) {
	const rest = "Size:                  4 kB\nRss:                   4 kB\n"
	entry := func(line, anonymous string) string {
		return line + "\n" + rest + "Anonymous:             " + anonymous + " kB\nVmFlags: rd\n"
	}
	smaps := entry("00400000-00401000 r-xp 00000000 08:02 173521 /usr/bin/a b", "0") +
		entry("00401000-00402000 r--p 00001000 08:02 173521 /usr/bin/a b", "4") + // relocated, then protected
		entry("00402000-00403000 rw-p 00002000 08:02 173521 /usr/bin/a b", "0") +
		entry("00403000-00404000 r--p 00003000 08:02 173521 /usr/bin/a b", "0") +
		entry("c000000000-c004000000 r--p 00000000 00:00 0", "0") + // of no file
		entry("7f0000000000-7f0000001000 r--s 00000000 08:02 99 /var/lib/x", "0") + // shared: not only ours
		entry("7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]", "0") +
		entry("zz-7f r-xp 00000000 08:02 99 /x", "0")
	got, err := cleanMappings(strings.NewReader(smaps))
	want := []mapping{{0x400000, 0x401000}, {0x403000, 0x404000}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%x, %v, want %x", got, err, want)
	}
}
