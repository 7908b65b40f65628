package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
	"github.com/quicklime-ir/quicklime/proto/seekable"
)

// victim is the instance of every case in a script's folder "evidence".
const victim = "i-0123456789abcdef0"

// writeEvidence fills a script's folder: "evidence" as a copy of the bucket,
// with the cases whole, partial (part 2 was never stored) and damaged (a byte
// of part 2 is another), "verify.pub", and "image.raw", "image.padded" and
// "image.lime", made of the same memory by simpler means.
func writeEvidence(dir string) error {
	ram := []lime.Range{{Start: 0x1000, End: 0x8fff}, {Start: 0x10000, End: 0x17fff}}
	memory := bytes.Repeat([]byte("what the host held"), 0x18000/18+1)[:0x18000]
	clear(memory[0x4000:0x6000])
	clear(memory[:0x1000])
	clear(memory[0x9000:0x10000])
	key, err := custody.NewKey(filepath.Join(dir, "signing.key"))
	if err != nil {
		return err
	}
	if err := key.WritePublic(filepath.Join(dir, "verify.pub")); err != nil {
		return err
	}
	for _, name := range []string{"whole", "partial", "damaged"} {
		if err := writeCase(filepath.Join(dir, "evidence"), name, key, memory, ram); err != nil {
			return err
		}
	}
	var image []byte
	for _, part := range lime.Plan(ram, 0x6000) {
		for _, r := range part {
			image = append(lime.AppendHeader(image, r), memory[r.Start:r.End+1]...)
		}
	}
	raw := append(bytes.Clone(memory[0x1000:0x9000]), memory[0x10000:]...)
	for name, body := range map[string][]byte{"image.lime": image, "image.raw": raw, "image.padded": memory} {
		if err := put(dir, name, body); err != nil {
			return err
		}
	}
	return nil
}

// writeCase stores and seals one case.
func writeCase(dir, name string, key *custody.Key, memory []byte, ram []lime.Range) error {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	defer encoder.Close()
	item := evidence.Item{Kind: evidence.Memory, Name: "memory", Format: evidence.LiME, Compression: evidence.Zstd, Source: "kcore",
		Status: evidence.Whole, RAM: ram, PartRAMBytes: 0x6000, PageFlags: "read"}
	item.Key = locker.Key(name, victim, item)
	var object []byte
	var frames []seekable.Frame
	add := func(p evidence.Part, stored []byte) {
		p.Size, p.SHA256 = uint64(len(stored)), sha256.Sum256(stored)
		item.Parts, object, item.Size = append(item.Parts, p), append(object, stored...), item.Size+p.Size
	}
	for i, part := range lime.Plan(ram, item.PartRAMBytes) {
		if name == "partial" && i == 1 {
			item.Status, item.Error = evidence.Partial, "the agent was lost"
			continue
		}
		var raw []byte
		for _, r := range part {
			raw = append(lime.AppendHeader(raw, r), memory[r.Start:r.End+1]...)
		}
		stored := encoder.EncodeAll(raw, nil)
		frames = append(frames, seekable.Frame{Stored: uint32(len(stored)), Raw: uint32(len(raw))})
		add(evidence.Part{Number: int32(i + 1), RawSize: uint64(len(raw)), Ranges: part}, stored)
	}
	table, err := seekable.AppendTable(nil, frames)
	if err != nil {
		return err
	}
	add(evidence.Part{Number: item.TableNumber()}, table)
	item.SHA256 = evidence.Composite(item.Parts)
	if name == "damaged" {
		object[item.Parts[0].Size+20] ^= 1
	}
	entry, head, err := custody.Next(evidence.JournalHead{}, time.Unix(0, 0), casefile.Event{Type: casefile.CaseOpened})
	if err != nil {
		return err
	}
	tables, stored := writeTables(name)
	manifest := evidence.Manifest{Case: name, Instance: evidence.Instance{ID: victim}, Items: append([]evidence.Item{item}, tables...), Journal: head}
	envelope, payload, err := seal(key, manifest)
	if err != nil {
		return err
	}
	for k, body := range stored {
		if err := put(dir, k, body); err != nil {
			return err
		}
	}
	for k, body := range map[string][]byte{item.Key: object, locker.JournalKey(name, victim, 1): entry,
		locker.SignatureKey(name, victim): envelope, locker.ManifestKey(name, victim): payload} {
		if err := put(dir, k, body); err != nil {
			return err
		}
	}
	return nil
}

// writeTables makes a table and a bodyfile of a case, and their objects. The
// case partial has a line that is none, the case damaged a byte that is
// another.
func writeTables(name string) (items []evidence.Item, objects map[string][]byte) {
	objects = map[string][]byte{}
	lines := "0|/etc/passwd|12|r/rrw-r--r--|0|0|5|0|1767225600.5|0|0\n"
	if name == "partial" {
		lines += "0|short\n"
	}
	for _, t := range []struct {
		item evidence.Item
		body string
	}{
		{evidence.Item{Kind: evidence.Volatile, Name: "processes", Format: evidence.JSONL}, `{"pid":7,"ppid":1,"name":"sh","exe":"/bin/sh","started":"2026-11-26T03:00:00Z"}` + "\n"},
		{evidence.Item{Kind: evidence.Live, Name: "bodyfile", Format: evidence.Text}, lines},
		{evidence.Item{Kind: evidence.Live, Name: "files", Format: evidence.Tar}, hostileTar()},
	} {
		body := []byte(t.body)
		part := evidence.Part{Number: 1, Size: uint64(len(body)), RawSize: uint64(len(body)), SHA256: sha256.Sum256(body)}
		t.item.Compression, t.item.Status, t.item.Size, t.item.Parts = evidence.None, evidence.Whole, part.Size, []evidence.Part{part}
		t.item.SHA256, t.item.Key = evidence.Composite(t.item.Parts), locker.Key(name, victim, t.item)
		if name == "damaged" {
			body[3] ^= 1
		}
		items, objects[t.item.Key] = append(items, t.item), body
	}
	return items, objects
}

// hostileTar has a file, a link that leads out, and a name that does.
func hostileTar() string {
	var b strings.Builder
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeReg, Name: "[root]/etc/passwd", Size: 5, Mode: 0o4755}, {Typeflag: tar.TypeSymlink, Name: "[root]/l", Linkname: "/etc"},
		{Typeflag: tar.TypeReg, Name: "../escaped", Size: 5},
	} {
		// To memory, of names that are short: it cannot fail.
		_ = w.WriteHeader(&h)
		if h.Size > 0 {
			_, _ = w.Write([]byte("root\n"))
		}
	}
	_ = w.Close()
	return b.String()
}

func put(dir, name string, body []byte) error {
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, body, 0o600)
}
