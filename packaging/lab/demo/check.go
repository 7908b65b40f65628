package demo

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/guest"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// evidence is what the checks look at: a copy of the bucket, and what the
// lab itself knows of the guest.
type evidence struct {
	binaries world.Binaries
	copied   string // the bucket's objects, by key
	key      string // the public key
	image    string // where the exported image goes
	facts    guest.Facts
	c        casefile.Case
	agent    weight
	out      io.Writer // where the command's list of objects goes
}

// check holds the evidence against the truth, from outside: by the public
// command and by the lab's own eyes.
func check(ctx context.Context, out io.Writer, e evidence) error {
	checks := []struct {
		what string
		do   func(context.Context) (string, error)
	}{
		{"every step of the case is done, every interface is isolated", e.steps},
		{"signature, journal, hashes in S3, parts and manifest agree", e.proven},
		{"the image decompresses, and its ranges are the guest's System RAM", e.ranges},
		{"the intruder's memory and environment are in the image", e.marker},
		{"the deleted process is in processes.jsonl, with its executable", e.process},
		{"history, key, cron job and log lines are in the tar", e.traces},
		{"the agent was small on this small host, and kept no buffer", e.weight},
	}
	var errs []error
	for n, one := range checks {
		detail, err := one.do(ctx)
		verdict := "ok   "
		if err != nil {
			verdict, detail = "WRONG", err.Error()
			errs = append(errs, fmt.Errorf("check %d, %s: %w", n+1, one.what, err))
		}
		fmt.Fprintf(out, "check %d  %s %s: %s\n", n+1, verdict, one.what, detail)
	}
	return errors.Join(errs...)
}

func (e evidence) steps(context.Context) (string, error) {
	for _, s := range e.c.Steps {
		if s.Outcome != casefile.Done {
			return "", fmt.Errorf("step %s is %s: %s", s.Name, s.Outcome, s.Detail)
		}
	}
	for _, i := range e.c.Interfaces {
		if len(i.After) != 1 || slices.Contains(i.Before, i.After[0]) {
			return "", fmt.Errorf("interface %s was in %v and is in %v", i.ID, i.Before, i.After)
		}
	}
	return fmt.Sprintf("%d steps, %d interfaces, %d snapshots", len(e.c.Steps), len(e.c.Interfaces), len(e.c.Image.Snapshots)), nil
}

// proven runs the command that anyone can run, and shows the objects with
// their sizes and hashes as it found them.
func (e evidence) proven(ctx context.Context) (string, error) {
	said, err := exec.CommandContext(ctx, e.binaries.Collector, "verify", "--dir", e.copied, "--key", e.key).CombinedOutput()
	if err != nil || !strings.Contains(string(said), "PROVEN: case "+e.c.ID) {
		return "", fmt.Errorf("verify: %w\n%s", err, said)
	}
	for line := range strings.Lines(string(said)) {
		if strings.Contains(line, " cases/") || strings.Contains(line, " sha256 ") || strings.Contains(line, " composite ") {
			fmt.Fprint(e.out, line)
		}
	}
	if !strings.Contains(string(said), "are those of the host's /proc/iomem") {
		return "", fmt.Errorf("verify did not hold the image's RAM against /proc/iomem\n%s", said)
	}
	return "PROVEN", nil
}

// object opens one of the case's objects, decompressed.
func (e evidence) object(kind, name string) (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(e.copied, "cases", e.c.ID, world.Victim, kind, name))
	if err != nil {
		return nil, err
	}
	d, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{d, f}, nil
}

// ranges exports the image by the command that anyone can run, and walks it.
func (e evidence) ranges(ctx context.Context) (string, error) {
	said, err := exec.CommandContext(ctx, e.binaries.Collector, "export", e.c.ID, "--dir", e.copied, "--key", e.key, "--format", "lime", "--out", e.image).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("export: %w\n%s", err, said)
	}
	f, err := os.Open(e.image)
	if err != nil {
		return "", err
	}
	defer f.Close()
	records, err := lime.Walk(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return "", err
	}
	var want []lime.Range
	for _, r := range e.facts.SystemRAM {
		want = append(want, lime.Range{Start: r.Start, End: r.End})
	}
	if got := lime.Merge(records); !slices.Equal(got, lime.Merge(want)) {
		return "", fmt.Errorf("the image has %v, the guest's /proc/iomem %v", got, want)
	}
	return fmt.Sprintf("%d records, %d bytes, %v", len(records), lime.Size(records), want), nil
}

// marker looks for the pages that only the intruder's memory held.
func (e evidence) marker(context.Context) (string, error) {
	needles := append(slices.Clone(e.facts.MarkerPages), []byte(e.facts.Marker))
	found, err := search(e.image, needles)
	if err != nil {
		return "", err
	}
	for n, at := range found {
		if at < 0 {
			return "", fmt.Errorf("mark %d of %d is not in the image", n+1, len(needles))
		}
	}
	return fmt.Sprintf("%d whole pages and the variable", len(e.facts.MarkerPages)), nil
}

// search finds the first place of each needle in a file, -1 where there is
// none. Needles are a page long at most.
func search(name string, needles [][]byte) ([]int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const step, overlap = 8 << 20, 4096
	found := slices.Repeat([]int64{-1}, len(needles))
	window := make([]byte, 0, step+overlap)
	for base := int64(0); ; {
		n, err := io.ReadFull(f, window[len(window):cap(window)])
		window = window[:len(window)+n]
		for i, needle := range needles {
			if at := bytes.Index(window, needle); at >= 0 && found[i] < 0 {
				found[i] = base + int64(at)
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return found, nil
			}
			return nil, err
		}
		kept := copy(window[:cap(window)], window[len(window)-overlap:])
		base += int64(len(window) - kept)
		window = window[:kept]
	}
}

func (e evidence) process(context.Context) (string, error) {
	r, err := e.object("volatile", "processes.jsonl.zst")
	if err != nil {
		return "", err
	}
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	count := 0
	for lines.Scan() {
		count++
		var row struct {
			PID     int    `json:"pid"`
			Exe     string `json:"exe"`
			Deleted bool   `json:"exe_deleted"`
			SHA256  string `json:"exe_sha256"`
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			return "", fmt.Errorf("row %d: %w", count, err)
		}
		if row.PID != e.facts.DeletedPID {
			continue
		}
		if !row.Deleted || row.Exe != e.facts.DeletedExe || row.SHA256 == "" {
			return "", fmt.Errorf("process %d has executable %q (deleted %v, hash %q), want %q", row.PID, row.Exe, row.Deleted, row.SHA256, e.facts.DeletedExe)
		}
		return fmt.Sprintf("pid %d, %s, SHA-256 %.16s…", row.PID, row.Exe, row.SHA256), nil
	}
	return "", fmt.Errorf("process %d is in none of %d rows (%v)", e.facts.DeletedPID, count, lines.Err())
}

func (e evidence) traces(context.Context) (string, error) {
	r, err := e.object("live", "files.tar.zst")
	if err != nil {
		return "", err
	}
	defer r.Close()
	left := slices.Clone(e.facts.Traces)
	archive := tar.NewReader(r)
	files := 0
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		files++
		body, err := io.ReadAll(io.LimitReader(archive, 16<<20))
		if err != nil {
			return "", err
		}
		left = slices.DeleteFunc(left, func(t guest.Trace) bool {
			return path.Join("/", header.Name) == path.Join("/[root]", t.Path) && bytes.Contains(body, []byte(t.Line))
		})
	}
	if len(left) > 0 {
		return "", fmt.Errorf("of %d traces, %d are not there: %+v", len(e.facts.Traces), len(left), left)
	}
	return fmt.Sprintf("%d traces in %d files", len(e.facts.Traces), files), nil
}
