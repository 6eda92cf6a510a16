package local

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
)

var errGone = core.NotFoundf("the compute's process is gone")

// process watches one postmaster, our child or an adopted one.
type process struct {
	handle compute.Handle
	cmd    *exec.Cmd // nil for an adopted process
	pidfd  *os.File

	done    chan struct{} // closed when the process has ended
	watched chan struct{} // closed when the watching goroutine has ended
	exit    compute.Exit  // valid once done is closed

	hurried bool // the startup process was given priority; only Promote uses it

	release sync.Once
}

// watch opens a pidfd for pid and waits for its end in the background. h.StartTicks is filled in for a child and compared
// for any other process.
func (d *Driver) watch(pid int, cmd *exec.Cmd, h compute.Handle) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, errGone
	} else if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	// Only now: the pidfd pins the process whose start time is read.
	st, err := readStat(pid)
	if cmd != nil {
		h.StartTicks = st.startTicks
	} else if err != nil || st.startTicks != h.StartTicks || st.state == 'Z' || st.state == 'X' {
		_ = unix.Close(fd)
		return nil, errGone
	}
	// A non-blocking descriptor goes to the runtime's poller: a watched server costs a goroutine, not a thread.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	p := &process{
		handle: h, cmd: cmd, pidfd: os.NewFile(uintptr(fd), fmt.Sprintf("pidfd:%d", pid)),
		done: make(chan struct{}), watched: make(chan struct{}),
	}
	raw, err := p.pidfd.SyscallConn()
	if err == nil {
		err = p.pidfd.SetReadDeadline(time.Time{}) // fails when the poller did not take it
	}
	if err != nil {
		_ = p.pidfd.Close()
		return nil, err
	}
	go p.wait(raw)
	return p, nil
}

// wait ends when the process does, or with Release.
func (p *process) wait(raw syscall.RawConn) {
	defer close(p.watched)
	ended := false
	err := raw.Read(func(fd uintptr) bool { // a pidfd is readable once its process has ended (pidfd_open(2))
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		ended = err == nil && n > 0
		return ended
	})
	if err != nil || !ended {
		return // released
	}
	exit := compute.Exit{At: time.Now(), Status: "unknown"}
	if p.cmd != nil {
		werr := p.cmd.Wait() // does not block any more
		exit.Clean = werr == nil
		if p.cmd.ProcessState != nil {
			exit.Status = p.cmd.ProcessState.String()
		}
	}
	p.exit = exit
	close(p.done)
}

func (p *process) Handle() compute.Handle { return p.handle }

func (p *process) Done() <-chan struct{} { return p.done }

func (p *process) Exit() compute.Exit {
	<-p.done
	return p.exit
}

// Signal sends what PostgreSQL understands: SIGINT is a fast shutdown, SIGQUIT an immediate one.
func (p *process) Signal(mode compute.StopMode) error {
	sig := unix.SIGINT
	switch mode {
	case compute.StopFast:
	case compute.StopImmediate:
		sig = unix.SIGQUIT
	case compute.StopKill:
		sig = unix.SIGKILL
	}
	err := p.send(sig)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return core.Wrap(err, "local.signal", "")
}

// Promote implements compute.Process as pg_ctl does: the file says what is wanted, SIGUSR1 makes the postmaster look.
// Somebody waits for the replay, which is short: it goes before other work.
func (p *process) Promote() error {
	if !p.hurried {
		p.hurried = hurry(p.handle.PID)
	}
	f, err := os.OpenFile(filepath.Join(p.handle.DataDir, "promote"), os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return core.Wrap(err, "local.promote", "")
	}
	if err := f.Close(); err != nil {
		return core.Wrap(err, "local.promote", "")
	}
	return core.Wrap(p.send(unix.SIGUSR1), "local.promote", "")
}

func (p *process) send(sig syscall.Signal) error {
	select {
	case <-p.done:
		return unix.ESRCH
	default:
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	return serr
}

func (p *process) Release() {
	p.release.Do(func() {
		_ = p.pidfd.Close() // also wakes wait
		<-p.watched
		if p.cmd != nil {
			select {
			case <-p.done:
			default:
				_ = p.cmd.Process.Release()
			}
		}
	})
}
