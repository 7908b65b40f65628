// Command standin takes the agent's place in the guest's own test: it loads
// lime.ko, and sends what the module serves on loopback to the host.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "standin: failed: %v\n", err)
		os.Exit(1)
	}
	fmt.Println("standin: idle")
	time.Sleep(time.Hour)
}

func run(host string) error {
	version, err := os.ReadFile("/proc/version")
	if err != nil {
		return err
	}
	fmt.Printf("standin: version=%s\n", bytes.TrimSpace(version))
	to, err := net.DialTimeout("tcp4", host, 10*time.Second)
	if err != nil {
		return err
	}
	defer to.Close()
	release, _, _ := bytes.Cut(version[len("Linux version "):], []byte(" "))
	module, err := os.Open("/usr/lib/quicklime/modules/" + string(release) + "/lime.ko")
	if err != nil {
		return err
	}
	defer module.Close()
	loaded := make(chan error, 1)
	go func() {
		loaded <- unix.FinitModule(int(module.Fd()), "path=tcp:4444 format=lime localhostonly=1 timeout=0", 0)
	}()
	from, err := dial(loaded)
	if err != nil {
		return err
	}
	defer from.Close()
	sent, err := io.Copy(to, from)
	if err != nil {
		return err
	}
	if err := <-loaded; err != nil {
		return err
	}
	fmt.Printf("standin: sent=%d\n", sent)
	return unix.DeleteModule("lime", 0)
}

func dial(loaded chan error) (net.Conn, error) {
	for range 300 {
		conn, err := net.Dial("tcp4", "127.0.0.1:4444")
		if err == nil {
			return conn, nil
		}
		select {
		case err := <-loaded:
			return nil, fmt.Errorf("finit_module ended early: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil, fmt.Errorf("nobody listens on 4444")
}
