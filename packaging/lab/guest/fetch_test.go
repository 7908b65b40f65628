package guest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestNewestKernel(t *testing.T) {
	record := "Package: linux-image-cloud-amd64\nSource: linux-signed-amd64 (6.1.192+2)\nVersion: 6.1.192-2\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nSection: kernel\n"
	got, err := newestKernel(record)
	if err != nil || got.Release != "6.1.0-56-cloud-amd64" || got.Version != "6.1.192-2" {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, record := range map[string]string{
		"empty":         "",
		"other flavour": "Depends: linux-image-6.1.0-56-rt-amd64 (= 6.1.192-2)",
		"no version":    "Depends: linux-image-6.1.0-56-cloud-amd64",
		"a path":        "Depends: linux-image-../../x-cloud-amd64 (= 1)",
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := newestKernel(record); err == nil {
				t.Errorf("accepted as %+v", got)
			}
		})
	}
}

func TestRelocate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Makefile")
	must(t, os.WriteFile(path, []byte("include /usr/src/linux-headers-6.1.0-56-common/Makefile\n"), 0o644))
	must(t, relocate(path, "/cache/root"))
	data, err := os.ReadFile(path)
	if want := "include /cache/root/usr/src/linux-headers-6.1.0-56-common/Makefile\n"; err != nil || string(data) != want {
		t.Errorf("got %q, %v; want %q", data, err, want)
	}
	must(t, os.WriteFile(path, []byte("include elsewhere\n"), 0o644))
	if err := relocate(path, "/cache/root"); err == nil {
		t.Error("a makefile of another form was accepted")
	}
}

func TestVermagic(t *testing.T) {
	for name, c := range map[string]struct{ info, want string }{
		"usual":      {"license=GPL\x00vermagic=6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions \x00parm=path:charp\x00", "6.1.0-56-cloud-amd64"},
		"none":       {"license=GPL\x00", ""},
		"not a key":  {"description=vermagic=6.1.0\x00", ""},
		"cut":        {"vermagic=6.1", "6.1"},
		"empty info": {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := vermagic([]byte(c.info)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestCheckVermagicOfRealModule(t *testing.T) {
	kit := testKit(t)
	if err := checkVermagic(kit.Lime, kit.Release); err != nil {
		t.Error(err)
	}
	if err := checkVermagic(kit.Lime, kit.Release+"x"); err == nil {
		t.Error("a module for another kernel was accepted")
	}
}

func TestIsStatic(t *testing.T) {
	if err := isStatic("fetch_test.go"); err == nil {
		t.Error("a text file was accepted as a program")
	}
	if err := isStatic("/usr/bin/env"); err == nil || !strings.Contains(err.Error(), "dynamically") {
		t.Errorf("a dynamic program gave %v", err)
	}
}

// A cancelled run ends the program's children too, at once.
func TestOutputEndsChildren(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := output(ctx, "", "sh", "-c", "sleep 60 & wait"); err == nil {
		t.Error("no error")
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestOutputTellsReason(t *testing.T) {
	_, err := output(t.Context(), "", "sh", "-c", "echo fine; echo broken >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("got %v", err)
	}
	t.Setenv("MAKEFLAGS", "-j --jobserver-auth=3,4")
	out, err := output(t.Context(), "", "sh", "-c", "echo $MAKEFLAGS")
	if err != nil || out != "\n" {
		t.Errorf("a make above is seen below: %q, %v", out, err)
	}
}

func TestPackagesAreMissingSomewhere(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if got := Missing(); len(got) != len(Packages()) {
		t.Errorf("without dpkg, %v are missing, want all", got)
	}
}
