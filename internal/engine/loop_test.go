//go:build linux

package engine

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pollPipe gives a loop that waits for a pipe alone, and the pipe's other end.
func pollPipe(t *testing.T) (l *loop, write int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return &loop{brisk: true, polled: []unix.PollFd{{Fd: int32(p[0]), Events: unix.POLLIN}}}, p[1]
}

// waited waits again if one of Go's own signals came.
func waited(l *loop) error {
	err := l.wait()
	for i := 0; i < 10 && err == unix.EINTR; i++ {
		err = l.wait()
	}
	return err
}

// TestOthersRunWhileTheLoopWaits: with GOMAXPROCS=1, as the engine has it, what
// writes the log must neither wait for a packet nor for the end of the packets.
func TestOthersRunWhileTheLoopWaits(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	t.Run("silence", func(t *testing.T) {
		// The runtime's own interruption, EINTR, comes by chance now and then; who needs it
		// has it each time.
		var err error
		for range 5 {
			l, write := pollPipe(t)
			go unix.Write(write, []byte{1})
			began := time.Now()
			if err = l.wait(); err == nil && l.polled[0].Revents != 0 && time.Since(began) < tick {
				return
			}
		}
		t.Errorf("no other goroutine ran while the loop waited: %v", err)
	})
	t.Run("packets without end", func(t *testing.T) {
		l, write := pollPipe(t)
		unix.Write(write, []byte{1})
		ran := make(chan struct{})
		go close(ran)
		for end := time.Now().Add(tick); ; {
			if err := l.wait(); err != nil && err != unix.EINTR {
				t.Fatal(err)
			}
			select {
			case <-ran:
				return
			default:
			}
			if time.Now().After(end) {
				t.Fatalf("the other goroutine did not run in %v", tick)
			}
		}
	})
}

// TestWaitEnds: without anything to do a wait lasts a tick, so that what is due by
// the clock is done.
func TestWaitEnds(t *testing.T) {
	l, _ := pollPipe(t)
	began := time.Now()
	err := waited(l)
	if took := time.Since(began); err != nil || took < tick || took > 10*tick {
		t.Errorf("the wait ended after %v: %v", took, err)
	}
}

// TestOnlyABriskLoopWaitsUnseen: a lone packet must not cost two waits.
func TestOnlyABriskLoopWaitsUnseen(t *testing.T) {
	l, write := pollPipe(t)
	waited(l)
	if l.brisk {
		t.Error("after a silence it is brisk")
	}
	unix.Write(write, []byte{1})
	if waited(l); !l.brisk {
		t.Error("after a packet that followed closely it is not brisk")
	}
}

func TestWaitAllocatesNothing(t *testing.T) {
	l, write := pollPipe(t)
	unix.Write(write, []byte{1})
	if n := testing.AllocsPerRun(100, func() { l.wait() }); n != 0 {
		t.Errorf("%v allocations for a wait", n)
	}
}
