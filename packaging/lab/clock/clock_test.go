package clock

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"time"
)

const role = "QUICKLIME_TEST_CLOCK"

// TestMain lets the test binary be the process whose clock is moved: it tells
// its two clocks on each line that it reads, while other threads ask for the
// time without a pause.
func TestMain(m *testing.M) {
	if os.Getenv(role) == "" {
		os.Exit(m.Run())
	}
	for range 4 {
		go func() {
			for range time.Tick(10 * time.Microsecond) {
				_ = time.Now()
			}
		}()
	}
	began := time.Now()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(time.Now().Unix(), time.Since(began).Milliseconds())
	}
}

func TestTheClockOfAnotherProcess(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("it is made for x86-64")
	}
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), role+"=1")
	in, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	ask := func() (wall time.Time, since time.Duration) {
		t.Helper()
		if _, err := fmt.Fprintln(in); err != nil || !said.Scan() {
			t.Fatalf("it says nothing: %v, %v", err, said.Err())
		}
		var seconds, ms int64
		if _, err := fmt.Sscan(said.Text(), &seconds, &ms); err != nil {
			t.Fatal(err)
		}
		return time.Unix(seconds, 0), time.Duration(ms) * time.Millisecond
	}
	ask() // it runs
	c, err := Of(other.Process.Pid)
	if os.IsPermission(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, before := ask()
	for _, ahead := range []time.Duration{0, time.Hour, -time.Hour, 30 * 24 * time.Hour, 0} {
		if err := c.Set(ahead); err != nil {
			t.Fatal(err)
		}
		wall, since := ask()
		if off := time.Until(wall) - ahead; off < -time.Minute || off > time.Minute {
			t.Errorf("set %v ahead, its clock says %v", ahead, wall)
		}
		if since < before || since > before+time.Minute {
			t.Errorf("set %v ahead, the time that has passed went from %v to %v", ahead, before, since)
		}
		before = since
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if err := other.Wait(); err != nil {
		t.Errorf("it did not stand it: %v", err)
	}
}

func TestThereIsNoSuchProcess(t *testing.T) {
	gone := exec.Command("/bin/true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := Of(gone.Process.Pid); err == nil {
		t.Error("process " + strconv.Itoa(gone.Process.Pid) + " has ended, and a clock")
	}
}
