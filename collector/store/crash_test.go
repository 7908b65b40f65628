package store_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/store"
)

// The writer of the crash test is this test binary, told so by its
// environment.
const (
	writerDir  = "STORE_TEST_WRITER_DIR"
	writerFrom = "STORE_TEST_WRITER_FROM"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		fmt.Fprintln(os.Stderr, writeForever(dir, os.Getenv(writerFrom)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// change is the n-th thing that the writer does: it is known from n alone.
func change(n int) (key, value string, remove bool) {
	return fmt.Sprintf("crash/%d/%d", n%3, n%7), strings.Repeat(strconv.Itoa(n)+" ", 1+n%3000), n%5 == 0
}

// writeForever makes one change after the other and says so after each.
func writeForever(dir, from string) error {
	n, err := strconv.Atoi(from)
	if err != nil {
		return err
	}
	s, err := store.OpenFiles(dir)
	if err != nil {
		return err
	}
	for ; ; n++ {
		if err := makeChange(s, n); err != nil {
			return fmt.Errorf("change %d: %w", n, err)
		}
		fmt.Println(n)
	}
}

func makeChange(s store.Store, n int) error {
	ctx := context.Background()
	key, value, remove := change(n)
	_, at, err := s.Get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if remove {
		if at == 0 {
			return nil
		}
		return s.Delete(ctx, key, at)
	}
	_, err = s.Put(ctx, key, []byte(value), at)
	return err
}

// TestKilledWriterLosesNothing kills a writer at random moments. Every change
// that it said was made is there, and at most one that it was making.
func TestKilledWriterLosesNothing(t *testing.T) {
	dir := t.TempDir()
	state := map[string]string{}
	next, total := 1, 0
	for round := range 20 {
		acked := runAndKill(t, dir, next, time.Duration(rand.IntN(60))*time.Millisecond)
		for ; next <= acked; next++ {
			apply(state, next)
			total++
		}
		got := contents(t, dir)
		if !maps.Equal(got, state) { // the change that it was making?
			apply(state, next)
			next++
			if !maps.Equal(got, state) {
				t.Fatalf("round %d: after %d acknowledged changes the store holds %d keys and is not what was written", round, acked, len(got))
			}
		}
	}
	if total < 20 {
		t.Fatalf("only %d changes were made in 20 rounds: the test proves nothing", total)
	}
	t.Logf("%d acknowledged changes, none lost", total)
}

// runAndKill gives the last change that the writer acknowledged.
func runAndKill(t *testing.T, dir string, from int, after time.Duration) (acked int) {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerDir+"="+dir, writerFrom+"="+strconv.Itoa(from))
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked = from - 1
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if acked, err = strconv.Atoi(lines.Text()); err != nil {
			t.Fatal(err)
		}
		if after >= 0 { // it works now: its time runs
			timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
			defer timer.Stop()
			after = -1
		}
	}
	cmd.Wait() // it was killed
	if stderr.Len() > 0 {
		t.Fatalf("writer: %s", stderr.String())
	}
	return acked
}

func apply(state map[string]string, n int) {
	key, value, remove := change(n)
	if remove {
		delete(state, key)
	} else {
		state[key] = value
	}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	s, err := store.OpenFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	entries, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		out[e.Key] = string(e.Value)
	}
	return out
}
