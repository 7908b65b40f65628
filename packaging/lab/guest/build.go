package guest

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// buildLime builds lime.ko from the unpacked DKMS source against the unpacked
// headers, and checks that it is for exactly this release.
//
// Debian's headers include their common part by its installed path. The cache's
// copy is made to include the cache's; nothing else in them is absolute.
func buildLime(ctx context.Context, root, work, release string) (string, error) {
	if strings.ContainsAny(root, " \t:") {
		return "", fmt.Errorf("cannot build a module in %q: make takes no path with blanks or colons", root)
	}
	headers := filepath.Join(root, "usr/src/linux-headers-"+release)
	if err := relocate(filepath.Join(headers, "Makefile"), root); err != nil {
		return "", err
	}
	source, err := oneMatch(filepath.Join(root, "usr/src/lime-forensics-*"))
	if err != nil {
		return "", err
	}
	_, err = output(ctx, work, "make", "-s", fmt.Sprintf("-j%d", runtime.NumCPU()),
		"-C", headers, "M="+source, "modules")
	if err != nil {
		return "", err
	}
	module := filepath.Join(source, "lime.ko")
	// As DKMS does: 1.8 MB become 30 kB.
	if _, err := output(ctx, "", "strip", "--strip-debug", module); err != nil {
		return "", err
	}
	return module, checkVermagic(module, release)
}

// relocate rewrites the makefile's one include of /usr/src to lie below root.
func relocate(makefile, root string) error {
	data, err := os.ReadFile(makefile)
	if err != nil {
		return err
	}
	const installed = "include /usr/src/"
	if n := strings.Count(string(data), installed); n != 1 {
		return fmt.Errorf("cannot relocate %s: it has %d lines with %q, want 1", makefile, n, installed)
	}
	moved := strings.Replace(string(data), installed, "include "+root+"/usr/src/", 1)
	return os.WriteFile(makefile, []byte(moved), 0o644)
}

// checkVermagic refuses a module for another release: the kernel would.
func checkVermagic(module, release string) error {
	f, err := elf.Open(module)
	if err != nil {
		return fmt.Errorf("cannot read the module %s: %w", module, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return fmt.Errorf("cannot use %s: it has no .modinfo section", module)
	}
	info, err := section.Data()
	if err != nil {
		return fmt.Errorf("cannot read the module %s: %w", module, err)
	}
	if got := vermagic(info); got != release {
		return fmt.Errorf("cannot use %s: it was built for %q, want %q", module, got, release)
	}
	return nil
}

// vermagic is the release in a module's .modinfo, which holds NUL-ended
// KEY=value strings; the kernel's include/linux/vermagic.h puts the release
// first. It is empty where there is none.
func vermagic(info []byte) string {
	for field := range strings.SplitSeq(string(info), "\x00") {
		if magic, ok := strings.CutPrefix(field, "vermagic="); ok {
			release, _, _ := strings.Cut(magic, " ")
			return release
		}
	}
	return ""
}

// BuildInit builds the guest's first process as a static program at out. module
// is a folder inside the lab's Go module. With a warm build cache it takes less
// than a second.
func BuildInit(ctx context.Context, module, out string) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	return buildStatic(ctx, module, "github.com/quicklime-ir/quicklime/packaging/lab/guest/init", out)
}

func buildStatic(ctx context.Context, module, pkg, out string) error {
	_, err := output(ctx, module, "env", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64",
		"go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	return err
}
