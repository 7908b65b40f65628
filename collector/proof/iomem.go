package proof

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/iomem"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// iomemBefore bounds how many members of the symbols' bundle are looked at.
// The agent writes the kernel's map of addresses among the first.
const iomemBefore = 100

// compareRAM holds the memory that each image is of against the host's
// /proc/iomem, which lies in the symbols' bundle and was taken before the
// image. It is a source of its own: an agent that left out a range of RAM, and
// said so nowhere, is found. Where it cannot be had, that is told beside the
// image, and is no fault of the image's. The error is ctx's own.
func (p *Proof) compareRAM(ctx context.Context, objects Objects) error {
	isImage := func(i evidence.Item) bool { return i.Format == evidence.LiME && len(i.Parts) > 0 }
	if !slices.ContainsFunc(p.Manifest.Items, isImage) {
		return nil
	}
	ram, lacking := hostRAM(ctx, objects, p.Manifest)
	if ctx.Err() != nil {
		return fmt.Errorf("cannot compare memory with /proc/iomem: %w", context.Cause(ctx))
	}
	for i, item := range p.Manifest.Items {
		if !isImage(item) {
			continue
		}
		r := &p.Report.Items[i]
		if lacking != nil {
			r.Notes = append(r.Notes, fmt.Sprintf("its RAM is not compared with the host's /proc/iomem: %v", lacking))
			continue
		}
		check := sameRAM(item.RAM, ram)
		r.Checks = append(r.Checks, check)
		p.Report.OK = p.Report.OK && check.OK
	}
	return nil
}

// sameRAM compares the RAM of an image with that of the host.
func sameRAM(image, host []lime.Range) evidence.Check {
	check := evidence.Check{Name: "iomem", OK: true}
	left, added := lime.Subtract(host, image), lime.Subtract(image, host)
	if len(left) == 0 && len(added) == 0 {
		check.Detail = fmt.Sprintf("its %d ranges of RAM, %d bytes, are those of the host's /proc/iomem", len(host), length(host))
		return check
	}
	check.OK = false
	check.Detail = fmt.Sprintf("its RAM has %d bytes, that of the host's /proc/iomem %d", length(image), length(host))
	if len(left) > 0 {
		check.Detail += fmt.Sprintf("; %d bytes in %d ranges are left out, first %s", length(left), len(left), left[0])
	}
	if len(added) > 0 {
		check.Detail += fmt.Sprintf("; %d bytes in %d ranges are no RAM there, first %s", length(added), len(added), added[0])
	}
	return check
}

// length saturates, as ranges of a manifest may be anything.
func length(ranges []lime.Range) uint64 {
	var sum uint64
	for _, r := range ranges {
		if sum += r.Len(); sum < r.Len() {
			return ^uint64(0)
		}
	}
	return sum
}

// hostRAM reads /proc/iomem in the bundle of symbols.
func hostRAM(ctx context.Context, objects Objects, m evidence.Manifest) ([]lime.Range, error) {
	at := slices.IndexFunc(m.Items, func(i evidence.Item) bool {
		return i.Kind == evidence.Symbols && i.Format == evidence.Tar && i.Size > 0
	})
	if at < 0 {
		return nil, errors.New("the manifest names no bundle of symbols")
	}
	r, err := NewReader(ctx, objects, m.Items[at])
	if err != nil {
		return nil, err
	}
	text, err := member(r, "iomem", iomem.MaxBytes)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("in the bundle of symbols: %w", err)
	}
	return iomem.SystemRAM(bytes.NewReader(text))
}

// member gives one file of a tar, which has to be among its first.
func member(r io.Reader, name string, limit int64) ([]byte, error) {
	archive := tar.NewReader(r)
	for range iomemBefore {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if header.Name != name || header.Typeflag != tar.TypeReg {
			continue
		}
		if header.Size > limit {
			return nil, fmt.Errorf("%s has %d bytes, over %d", name, header.Size, limit)
		}
		return io.ReadAll(archive)
	}
	return nil, fmt.Errorf("%s is not there: the agent could not read it, or was cut off before", name)
}
