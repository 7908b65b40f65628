package etcd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/store"
)

// writeForever counts up in one key, and says each number once it is kept.
// Each value is longer or shorter than the last.
func writeForever(dir string) error {
	ctx := context.Background()
	s, err := Open(ctx, alone(dir))
	if err != nil {
		return err
	}
	value, at, err := s.Get(ctx, "count")
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	for n := count(value) + 1; ; n++ {
		if at, err = s.Put(ctx, "count", numbered(n), at); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

func numbered(n int) []byte {
	return []byte(strings.Repeat(strconv.Itoa(n)+" ", 1+n%3000))
}

func count(value []byte) int {
	first, _, _ := strings.Cut(string(value), " ")
	n, _ := strconv.Atoi(first)
	return n
}

// TestKilledWriterLosesNothing kills a writer at random moments. The last
// change that it said was made is there, whole, or the one that it was making.
func TestKilledWriterLosesNothing(t *testing.T) {
	dir := t.TempDir()
	acked := 0
	for round := range 6 {
		acked = max(acked, runAndKill(t, dir, time.Duration(rand.IntN(60))*time.Millisecond))
		s := begin(t, dir)
		value, _, err := s.Get(t.Context(), "count")
		s.Close()
		kept := count(value)
		if err != nil || kept != acked && kept != acked+1 || !bytes.Equal(value, numbered(kept)) {
			t.Fatalf("round %d: %d was acknowledged, %d is kept in %d bytes (%v)", round, acked, kept, len(value), err)
		}
		acked = kept
	}
	if acked < 12 {
		t.Fatalf("only %d changes in 6 rounds: the test proves nothing", acked)
	}
	t.Logf("%d acknowledged changes, none lost", acked)
}

// runAndKill gives the last change that the writer acknowledged.
func runAndKill(t *testing.T, dir string, after time.Duration) (acked int) {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerDir+"="+dir)
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var timer *time.Timer
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if acked, err = strconv.Atoi(lines.Text()); err != nil {
			t.Fatal(err)
		}
		if timer == nil { // it works now: its time runs
			timer = time.AfterFunc(after, func() { cmd.Process.Kill() })
			defer timer.Stop()
		}
	}
	cmd.Wait() // it was killed
	if stderr.Len() > 0 {
		t.Fatalf("writer: %s", stderr.String())
	}
	return acked
}
