package packages

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStatus(t *testing.T) {
	var got []Package
	odd, err := Status(strings.NewReader("Package: bash\nStatus: install ok installed\nVersion: 5.2-1\nArchitecture: amd64\nInstalled-Size: 7163\nDescription: sh\n Version: 9\n\n\nVersion: 1\n\nPackage: x\nStatus: deinstall ok config-files"),
		func(p Package) error { got = append(got, p); return nil })
	want := []Package{{Name: "bash", Version: "5.2-1", Arch: "amd64", Status: "install ok installed", InstalledKiB: 7163}, {Name: "x", Status: "deinstall ok config-files"}}
	if diff := cmp.Diff(want, got); diff != "" || odd != 1 || err != nil {
		t.Error(diff, odd, err)
	}
}

type tag struct {
	tag, kind, count uint32
	data             []byte
}

// rpmHeader makes a header as rpm stores one.
func rpmHeader(tags ...tag) []byte {
	var index, data []byte
	for _, t := range tags {
		for _, n := range []uint32{t.tag, t.kind, uint32(len(data)), t.count} {
			index = binary.BigEndian.AppendUint32(index, n)
		}
		data = append(data, t.data...)
	}
	out := binary.BigEndian.AppendUint32(nil, uint32(len(tags)))
	out = binary.BigEndian.AppendUint32(out, uint32(len(data)))
	return append(append(out, index...), data...)
}

func sample() []byte {
	signature := append([]byte{0x89, 0, 19, 4, 0, 1, 8, 0, 0, 0, 10, 9, 16}, 1, 2, 3, 4, 5, 6, 7, 0xff)
	return rpmHeader(
		tag{tagRSA, typeBinary, uint32(len(signature)), signature},
		tag{tagName, typeString, 1, []byte("bash\x00")}, tag{tagVersion, typeString, 1, []byte("5.1\x00")}, tag{tagRelease, typeString, 1, []byte("2.amzn2023\x00")},
		tag{tagEpoch, typeInt32, 1, []byte{0, 0, 0, 1}}, tag{tagInstall, typeInt32, 1, []byte{0x65, 0, 0, 0}}, tag{tagLong, typeInt64, 1, []byte{0, 0, 0, 0, 0, 0, 8, 0}},
		tag{tagGroup, typeI18N, 1, []byte("Shells\x00")}, tag{tagBases, typeStrings, 2, []byte("bash\x00sh\x00")}, tag{tagArch, typeString, 1, []byte("aarch64\x00")})
}

func TestHeader(t *testing.T) {
	got, err := Header(sample())
	want := Package{Name: "bash", Version: "1:5.1-2.amzn2023", Arch: "aarch64", Section: "Shells", InstallTime: 0x65000000, InstalledKiB: 2, Files: 2, Signature: "01020304050607ff"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for _, broken := range [][]byte{nil, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, rpmHeader(tag{tagName, typeInt32, 1, []byte("bash")})} {
		if p, err := Header(broken); err == nil {
			t.Errorf("%x gives %+v", broken, p)
		}
	}
}

// testdata/hash.db was made by Berkeley DB 5.3 with pages of 512 bytes; value i
// of 20 is the letter i, i*150 times: some in a page, some in overflow pages.
func TestBDBAsItWroteIt(t *testing.T) {
	data, err := os.ReadFile("testdata/hash.db")
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for i := 1; i <= 20; i++ {
		want = append(want, strings.Repeat(string(rune(64+i)), i*150))
	}
	err = BDB(bytes.NewReader(data), int64(len(data)), func(v []byte, err error) error { got = append(got, string(v)); return err })
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// ndb makes a database of one page of slots, with a blob whose slot is bad
// besides.
func ndb(blob []byte) []byte {
	b := make([]byte, ndbPage+16)
	copy(b, "RpmP")
	b[12] = 1
	for at := ndbHead; at < ndbPage; at += ndbSlot {
		copy(b[at:], "Slot")
	}
	b[ndbHead+4], b[ndbHead+9] = 7, 1 // package 7 at block 256
	b[ndbHead+ndbSlot+4], b[ndbHead+ndbSlot+10] = 8, 1
	copy(b[ndbPage:], "BlbS")
	b[ndbPage+4] = 7
	binary.LittleEndian.PutUint32(b[ndbPage+12:], uint32(len(blob)))
	return append(b, blob...)
}

func TestNDB(t *testing.T) {
	data := ndb(sample())
	var values [][]byte
	broken := 0
	err := NDB(bytes.NewReader(data), int64(len(data)), func(v []byte, err error) error {
		if err != nil {
			broken++
		} else {
			values = append(values, v)
		}
		return nil
	})
	if err != nil || broken != 1 || len(values) != 1 || !bytes.Equal(values[0], sample()) {
		t.Errorf("got %d values, %d broken, %v", len(values), broken, err)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(sample())
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Header(data)
		if err == nil && (p.Name == "" || len(p.Name) > maxText) {
			t.Errorf("got %+v", p)
		}
	})
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte("Package: a\n\nPackage: b\n x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		Status(bytes.NewReader(data), func(p Package) error {
			if p.Name == "" || len(p.Version) > maxText {
				t.Errorf("got %+v", p)
			}
			return nil
		})
	})
}

func FuzzDatabases(f *testing.F) {
	data, err := os.ReadFile("testdata/hash.db")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data[:4096])
	f.Add(ndb(sample()))
	f.Fuzz(func(t *testing.T, data []byte) {
		told := 0
		count := func(v []byte, err error) error { told += len(v); return nil }
		BDB(bytes.NewReader(data), int64(len(data)), count)
		NDB(bytes.NewReader(data), int64(len(data)), count)
		if told > 8*len(data) {
			t.Errorf("%d bytes out of %d", told, len(data))
		}
	})
}
