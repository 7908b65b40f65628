package bench

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/bucket"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

func TestAFigureIsALine(t *testing.T) {
	var out bytes.Buffer
	o := Options{Out: &out}
	for _, v := range []float64{0.93456, 3, 1234567} {
		if err := o.figure("kcore_read_vs_dd", v, "ratio"); err != nil {
			t.Fatal(err)
		}
	}
	if want := "kcore_read_vs_dd 0.935 ratio\nkcore_read_vs_dd 3.000 ratio\nkcore_read_vs_dd 1234567.000 ratio\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestMedian(t *testing.T) {
	for want, values := range map[float64][]float64{5: {5}, 2: {9, 1, 2}, 2.5: {4, 1, 3, 2}} {
		if got := median(values); got != want {
			t.Errorf("median of %v is %v, want %v", values, got, want)
		}
	}
}

func TestParseReading(t *testing.T) {
	got, err := parseReading([]byte(`{"bytes":535691264,"missing":3072,"seconds":2.5}` + "\n"))
	if want := (reading{535691264, 3072, 2.5}); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "readbench: no", `{"bytes":5,"seconds":0}`, `{"bytes":5,"missing":5,"seconds":1}`} {
		if _, err := parseReading([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestParseBenchmarks(t *testing.T) {
	got, err := parseBenchmarks(`goos: linux
BenchmarkPack/sha256-2         	      33	  34512345 ns/op	 972.25 MB/s	       0 B/op
BenchmarkPackAuto/allZero    	  100	 99.5 ns/op
PASS
`)
	want := []benchmarkFigure{{"pack_sha256", 972.25, "MB/s"}, {"pack_sha256", 0, "B/op"}, {"pack_auto_all_zero", 99.5, "ns/op"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "PASS\n", "BenchmarkX-2 5 7\n", "BenchmarkX-2 5 fast ns/op\n"} {
		if got, err := parseBenchmarks(bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}

func TestWatch(t *testing.T) {
	now := time.Now()
	w := &watch{answers: []bucket.Answer{
		{Operation: "UploadPart", Path: "/b/cases/1/memory/memory.lime", Time: now.Add(-time.Second)},
		{Operation: "UploadPart", Path: "/b/cases/2/memory/memory.lime", Time: now.Add(2 * time.Second)},
		{Operation: "CompleteMultipartUpload", Path: "/b/cases/2/memory/memory.lime", Time: now.Add(5 * time.Second)},
	}}
	for op, want := range map[string]float64{"UploadPart": 2, "CompleteMultipartUpload": 5} {
		if got, err := w.seconds(now, "/memory/", op); err != nil || got != want {
			t.Errorf("%s after %v s, %v; want %v", op, got, err, want)
		}
	}
	if _, err := w.seconds(now, "/live/", "UploadPart"); err == nil {
		t.Error("what did not happen has a time")
	}
}

func TestZeroPages(t *testing.T) {
	var image []byte
	for _, r := range []lime.Range{{Start: 0x1000, End: 0x3fff}, {Start: 0x10000, End: 0x11bff}} { // three pages, and one and three quarters
		image = append(lime.AppendHeader(image, r), make([]byte, r.Len())...)
	}
	image[lime.HeaderSize+0x1000] = 1 // the second of five
	image[len(image)-1] = 1           // the last, which is short
	share, size, err := zeroPages(bytes.NewReader(image))
	if err != nil || share != 0.6 || size != int64(len(image)) {
		t.Errorf("%v of %d bytes are zero, %v; want 0.6 of %d", share, size, err, len(image))
	}
	if _, _, err := zeroPages(bytes.NewReader(image[:len(image)-1])); err == nil {
		t.Error("an image that is cut short was read as if it were whole")
	}
}
