package artifact

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// benchFiles is how many files the benchmarks' tree has.
func benchFiles(b *testing.B) int {
	n, err := strconv.Atoi(os.Getenv("QUICKLIME_BENCH_FILES"))
	if err != nil {
		return 10_000
	}
	return n
}

// benchTree plants files of 1 KiB, a hundred to a folder.
func benchTree(b *testing.B) string {
	b.Helper()
	root := b.TempDir()
	content := []byte(strings.Repeat("0123456789abcde\n", 64))
	for i := range benchFiles(b) {
		dir := filepath.Join(root, "srv", strconv.Itoa(i/10_000), strconv.Itoa(i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%d", i)), content, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	return root
}

// program runs one of the host's, its output thrown away.
func program(b *testing.B, command string, args ...string) {
	b.Helper()
	path, err := exec.LookPath(command)
	if err != nil {
		b.Skip(err)
	}
	for b.Loop() {
		c := exec.Command(path, args...)
		c.Stdout = onlyWriter{io.Discard} // a pipe, as tar knows /dev/null and reads nothing then
		if err := c.Run(); err != nil {
			b.Fatal(err)
		}
	}
}

type onlyWriter struct{ io.Writer }

// BenchmarkBodyfile holds the walk against find, over one tree.
//
//	QUICKLIME_BENCH_FILES=1000000 go test -run '^$' -bench 'Bodyfile|FilesTar' ./agent/artifact
func BenchmarkBodyfile(b *testing.B) {
	root := benchTree(b)
	b.Run("quicklime", func(b *testing.B) {
		bench(b, func(rec *Record) error { return (&Host{Root: root}).WriteBodyfile(b.Context(), io.Discard, rec) })
	})
	b.Run("find", func(b *testing.B) {
		program(b, "find", root, "-printf", `0|%p|%i|%M|%U|%G|%s|%A@|%T@|%C@|%B@\n`)
	})
}

// BenchmarkFilesTar holds the tar against tar's, neither compressed.
func BenchmarkFilesTar(b *testing.B) {
	root := benchTree(b)
	all := []Definition{{Name: "All", Paths: []string{"/srv/**"}}}
	b.Run("quicklime", func(b *testing.B) {
		bench(b, func(rec *Record) error {
			return (&Host{Root: root}).writeFiles(context.WithoutCancel(b.Context()), io.Discard, rec, all)
		})
	})
	b.Run("tar", func(b *testing.B) { program(b, "tar", "-c", "--format=pax", "--xattrs", "-S", "-C", root, "srv") })
}

func bench(b *testing.B, run func(*Record) error) {
	b.ReportAllocs()
	for b.Loop() {
		if err := run(new(Record)); err != nil {
			b.Fatal(err)
		}
	}
}
