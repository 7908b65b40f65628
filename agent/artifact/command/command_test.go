package command

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOnlyTheListRuns(t *testing.T) {
	planted := filepath.Join(t.TempDir(), "ran")
	for _, argv := range [][]string{
		nil, {""}, {"/bin/touch", planted}, {"nft", "list", "ruleset"}, {"/usr/sbin/nft", "flush", "ruleset"}, {"/usr/sbin/nft", "list"},
		{"/usr/sbin/nft", "list", "ruleset", "-f"}, {"/usr/sbin/nft list ruleset"},
	} {
		if _, err := Run(t.Context(), argv); Known(argv) || !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v", argv, err)
		}
	}
	if _, err := os.Stat(planted); !errors.Is(err, os.ErrNotExist) {
		t.Error("a command that is not on the list ran")
	}
	for _, p := range programs {
		if !filepath.IsAbs(p.argv[0]) || !Known(p.argv) || len(p.needs) == 0 {
			t.Errorf("%q needs a whole path, and a sign that asking changes nothing", p.argv)
		}
	}
}

func TestARunHasNoInputAndTwoVariables(t *testing.T) {
	t.Setenv("LD_PRELOAD", "/evil.so")
	out, err := run(t.Context(), []string{"/usr/bin/env"}, maxTime, maxOutput)
	if err != nil || string(out.Stdout) != "PATH=/usr/sbin:/usr/bin:/sbin:/bin\nLC_ALL=C\n" {
		t.Errorf("%q, %v", out.Stdout, err)
	}
	out, err = run(t.Context(), []string{"/bin/cat"}, maxTime, maxOutput)
	if err != nil || len(out.Stdout) != 0 {
		t.Errorf("%q, %v", out.Stdout, err)
	}
}

func TestARunThatFailsSaysWhy(t *testing.T) {
	out, err := run(t.Context(), []string{"/bin/sh", "-c", "echo half; echo why >&2; exit 3"}, maxTime, maxOutput)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || string(out.Stdout) != "half\n" || string(out.Stderr) != "why\n" {
		t.Errorf("%q %q %v", out.Stdout, out.Stderr, err)
	}
}

// A program that does not end, and has children that hold its output, ends
// with its time; one that says too much is cut.
func TestARunIsBounded(t *testing.T) {
	out, err := run(t.Context(), []string{"/bin/sh", "-c", "echo first; sleep 1000 & sleep 1000"}, 200*time.Millisecond, maxOutput)
	if !errors.Is(err, errTooLong) || string(out.Stdout) != "first\n" {
		t.Errorf("%q, %v", out.Stdout, err)
	}
	out, err = run(t.Context(), []string{"/bin/sh", "-c", "while :; do echo yes; done"}, maxTime, 1000)
	if err != nil || !out.Cut || len(out.Stdout) != 1000 {
		t.Errorf("%d bytes, cut %t, %v", len(out.Stdout), out.Cut, err)
	}
	out, err = run(t.Context(), []string{"/bin/sh", "-c", "while :; do echo yes >&2; done"}, 200*time.Millisecond, 1000)
	if !errors.Is(err, errTooLong) || len(out.Stderr) != maxErrors {
		t.Errorf("%d bytes, %v", len(out.Stderr), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = run(ctx, []string{"/bin/sleep", "1000"}, maxTime, 1000); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestAProgramThatOthersCanWriteToIsNotTrusted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nft")
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := trusted(path); !errors.Is(err, ErrUnsafe) {
		t.Errorf("got %v", err)
	}
	if err := trusted("/bin/sh"); err != nil {
		t.Error(err)
	}
	if err := trusted(path + "none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
