package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// Bounds of one way from an order to an object: wide, as a busy host makes an
// emulated guest several times slower.
const (
	caseLimit = 15 * time.Minute
	seedLimit = 15 * time.Minute
)

// collectorFlags are those of a measured collector. What comes after the
// image is not measured, so it is cut short.
func collectorFlags(source string) []string {
	return []string{"--memory-source", source, "--live-limit", "5s"}
}

// capture is what one case of ours took, in seconds.
type capture struct {
	source                           string
	object, firstOfAll, firstOfOrder float64
}

// objects measures the ways from an order to a completed object: ours as it
// is by default, which is /proc/kcore, the seed's over TCP and by disk, ours by
// LiME.
func (g *instance) objects(ctx context.Context) error {
	if err := g.mount(ctx); err != nil {
		return err
	}
	standard, err := g.capture(ctx)
	if err != nil {
		return err
	}
	tcp, err := g.seed(ctx, "seed/tcp.lime", g.seedTCP())
	if err != nil {
		return err
	}
	disk, err := g.seed(ctx, "seed/disk.lime", g.seedDisk())
	if err != nil {
		return err
	}
	if err := g.w.RestartCollector(ctx, collectorFlags("lime")...); err != nil {
		return err
	}
	lime, err := g.capture(ctx)
	if err != nil {
		return err
	}
	if standard.source != "kcore" || lime.source != "lime" {
		return fmt.Errorf("cannot compare: the images came by %s and %s, want kcore and lime", standard.source, lime.source)
	}
	for _, f := range []struct {
		name  string
		value float64
		unit  string
	}{
		{"order_to_object_kcore", standard.object, "s"},
		{"order_to_object_lime", lime.object, "s"},
		{"seed_tcp_to_object", tcp.seconds, "s"},
		{"seed_disk_to_object", disk.seconds, "s"},
		{"order_to_object_vs_seed", tcp.seconds / standard.object, "ratio"},
		{"order_to_object_lime_vs_seed", tcp.seconds / lime.object, "ratio"},
		{"order_to_object_vs_disk", disk.seconds / standard.object, "ratio"},
		{"seed_tcp_zero_pages", tcp.zero, "share"},
		{"seed_disk_zero_pages", disk.zero, "share"},
		{"finding_to_first_byte", standard.firstOfAll, "s"},
		{"order_to_first_byte", standard.firstOfOrder, "s"},
	} {
		if err := g.o.figure(f.name, f.value, f.unit); err != nil {
			return err
		}
	}
	return nil
}

// capture runs a case and measures its memory image, by the collector's clock
// and the bucket's, which are this host's.
func (g *instance) capture(ctx context.Context) (capture, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, caseLimit, fmt.Errorf("the case has not ended after %v", caseLimit))
	defer cancel()
	if err := poll(ctx, func() (bool, error) {
		agents, err := g.w.Agents(ctx)
		return err == nil && len(agents) > 0, nil // the collector may still be starting
	}); err != nil {
		return capture{}, fmt.Errorf("the agent does not attach: %w", err)
	}
	began := time.Now()
	if err := g.w.Find(world.Compromised(world.Victim)); err != nil {
		return capture{}, err
	}
	c, err := g.ended(ctx, began)
	if err != nil {
		return capture{}, err
	}
	if err := g.w.CloseCase(ctx, c.ID, "it was measured"); err != nil {
		return capture{}, err
	}
	step, ok := c.StepNamed("memory")
	if !ok || step.Outcome != casefile.Done {
		return capture{}, fmt.Errorf("cannot measure: the memory step is %q: %s", step.Outcome, step.Detail)
	}
	out := capture{}
	for _, item := range c.Items {
		if item.Kind == evidence.Memory && item.Name == "memory" {
			out.source = item.Source
		}
	}
	image := c.ID + "/" + world.Victim + "/memory/memory."
	var errs [3]error
	out.object, errs[0] = g.watch.seconds(step.Started, image, "CompleteMultipartUpload")
	out.firstOfOrder, errs[1] = g.watch.seconds(step.Started, image, "UploadPart")
	out.firstOfAll, errs[2] = g.watch.seconds(began, "/"+world.Victim+"/", "UploadPart") // the journal's objects are no evidence
	g.o.Log.Info("captured", "source", out.source, "object", out.object, "first byte", out.firstOfOrder, "first of all", out.firstOfAll)
	return out, errors.Join(errs[:]...)
}

// ended waits for the end of the case that was opened since a time.
func (g *instance) ended(ctx context.Context, since time.Time) (casefile.Case, error) {
	var found casefile.Case
	err := poll(ctx, func() (bool, error) {
		cases, err := g.w.Cases(ctx)
		for _, c := range cases {
			if err == nil && c.Opened.After(since) && c.State == casefile.Ended {
				found = c
				return true, nil
			}
		}
		return false, nil
	})
	return found, err
}

// mount brings the AWS CLI's disk and the scratch disk into the guest's tree.
func (g *instance) mount(ctx context.Context) error {
	return g.script(ctx, time.Minute, `
		busybox mkdir -p `+toolsAt+`
		mount -t ext4 -o ro /dev/vda `+toolsAt+`
		mount -t ext4 /dev/vdb `+toolsAt+`/mnt
		mount -t tmpfs tmpfs `+toolsAt+`/tmp
		mount -t proc proc `+toolsAt+`/proc
		mount -t devtmpfs devtmpfs `+toolsAt+`/dev
		cat `+world.GuestCA+` > `+toolsAt+`/tmp/ca.crt`)
}

// seeded is what one of the seed's ways took, and what came of it.
type seeded struct {
	seconds float64
	zero    float64 // the share of its pages that are zero
}

// seed has the guest run the seed's commands. The time is from their start
// until the object was complete.
func (g *instance) seed(ctx context.Context, key, commands string) (seeded, error) {
	began := time.Now()
	if err := g.script(ctx, seedLimit, commands); err != nil {
		return seeded{}, err
	}
	took, err := g.watch.seconds(began, "/"+key, "CompleteMultipartUpload")
	if err != nil {
		return seeded{}, err
	}
	out, err := g.w.S3.Client().GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(world.Bucket), Key: &key})
	if err != nil {
		return seeded{}, fmt.Errorf("cannot read %s: %w", key, err)
	}
	defer out.Body.Close()
	zero, size, err := zeroPages(out.Body)
	if err != nil {
		return seeded{}, fmt.Errorf("cannot read %s: %w", key, err)
	}
	if want := g.imageSize(); size != want {
		return seeded{}, fmt.Errorf("cannot compare: %s has %d bytes, an image has %d", key, size, want)
	}
	g.o.Log.Info("the seed's way", "key", key, "object", took, "zero", zero)
	return seeded{took, zero}, nil
}

// zeroPages reads a LiME image, and gives the share of its memory's pages that
// are zero, and its size.
func zeroPages(image io.Reader) (share float64, size int64, err error) {
	r := lime.NewReader(bufio.NewReaderSize(image, 1<<20))
	var zero, all int64
	page, nothing := make([]byte, pact.PageSize), make([]byte, pact.PageSize)
	for {
		rng, err := r.Next()
		if errors.Is(err, io.EOF) {
			return float64(zero) / float64(max(1, all)), size, nil
		}
		if err != nil {
			return 0, size, err
		}
		size += lime.HeaderSize + int64(rng.Len())
		for {
			n, err := io.ReadFull(r, page)
			if n > 0 {
				all++
			}
			if n > 0 && bytes.Equal(page[:n], nothing[:n]) {
				zero++
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				break
			}
			if err != nil {
				return 0, size, err
			}
		}
	}
}

// seedTCP are the seed's own commands: LiME serves the image on a port, netcat
// takes it, and the AWS CLI uploads what comes. LiME's other parameters are
// left as they are by default.
func (g *instance) seedTCP() string {
	return fmt.Sprintf(`
		busybox insmod %s path=tcp:4444 format=lime &
		loading=$!
		until grep -q ':115C 00000000:0000 0A' /proc/net/tcp; do sleep 0.05; done
		busybox nc 127.0.0.1 4444 </dev/null | %s s3 cp --only-show-errors --expected-size %d - s3://%s/seed/tcp.lime
		wait $loading
		busybox rmmod lime`, g.module(), g.awscli(), g.imageSize(), world.Bucket)
}

// seedDisk are the commands of those who have a disk to spare.
func (g *instance) seedDisk() string {
	return fmt.Sprintf(`
		busybox insmod %s path=%s/mnt/memory.lime format=lime
		busybox rmmod lime
		%s s3 cp --only-show-errors /mnt/memory.lime s3://%s/seed/disk.lime`, g.module(), toolsAt, g.awscli(), world.Bucket)
}

func (g *instance) module() string { return pact.ModulesDir + "/" + g.facts.Release + "/lime.ko" }

// awscli is the beginning of a command line in the guest.
func (g *instance) awscli() string {
	access, secret := g.w.Keys()
	return fmt.Sprintf(`busybox env -i HOME=/root PATH=/usr/bin AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s AWS_DEFAULT_REGION=%s `+
		`AWS_CA_BUNDLE=/tmp/ca.crt AWS_EC2_METADATA_DISABLED=true /usr/bin/busybox chroot %s /usr/bin/aws --endpoint-url %s`, access, secret, world.Region, toolsAt, g.w.S3.GuestURL())
}
