package arena

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DropProgram takes the pages of the running program out of this process: its
// code and constants, which the kernel maps 16 pages at a time whether they are
// used or not. Those that are used come back when they are, one fault each; the
// others, most of a program that has done with its tables and only reads memory
// from now on, are left to the host. It gives how many bytes the mappings have
// that were dropped. Source: madvise(2), MADV_DONTNEED on file mappings;
// mm/memory.c, do_fault_around.
func DropProgram() (int64, error) {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return 0, fmt.Errorf("cannot drop the program's pages: %w", err)
	}
	defer f.Close()
	mappings, err := cleanMappings(f)
	if err != nil {
		return 0, fmt.Errorf("cannot drop the program's pages: %w", err)
	}
	var dropped int64
	for _, m := range mappings {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(m.start), uintptr(m.end-m.start), unix.MADV_DONTNEED); errno != 0 {
			return dropped, fmt.Errorf("cannot drop the program's pages %x-%x: %w", m.start, m.end, errno)
		}
		dropped += int64(m.end - m.start)
	}
	return dropped, nil
}

// mapping is a span of this process's addresses.
type mapping struct{ start, end uint64 }

// cleanMappings gives the mappings of files that are not writable and that have
// no page of their own: what is dropped of them is in the file, and comes back
// as it was. A page that was written to before it was protected, as by a
// relocation, would not. Source: proc_pid_smaps(5).
func cleanMappings(smaps io.Reader) ([]mapping, error) {
	var out []mapping
	var now mapping
	candidate := false
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 5 && strings.Contains(fields[0], "-") { // 00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/x
			start, end, _ := strings.Cut(fields[0], "-")
			var err1, err2 error
			now.start, err1 = strconv.ParseUint(start, 16, 64)
			now.end, err2 = strconv.ParseUint(end, 16, 64)
			candidate = err1 == nil && err2 == nil && now.start < now.end && len(fields[1]) == 4 && fields[1][0] == 'r' && fields[1][1] == '-' &&
				fields[1][3] == 'p' && fields[4] != "0"
		} else if len(fields) == 3 && fields[0] == "Anonymous:" && candidate {
			candidate = false
			if fields[1] == "0" {
				out = append(out, now)
			}
		}
	}
	return out, lines.Err()
}
