package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// Group is the control group of one compute. Its methods are safe for concurrent use; changes of the same limit are not
// ordered among themselves.
type Group struct {
	files
	dirs []string // one in each hierarchy
}

// files are a group's own, by what is done with them. The names are those of the kernel's manuals: admin-guide/cgroup-v1
// (memory.rst, cpuacct.rst), scheduler/sched-bwc.rst and admin-guide/cgroup-v2.rst.
type files struct {
	version           int
	cpu, acct, memory string // folders
}

func (t *Tree) files(rel string) files {
	return files{t.version, filepath.Join(t.cpu, rel), filepath.Join(t.acct, rel), filepath.Join(t.memory, rel)}
}

// limits are the files without which nothing is limited.
func (f files) limits() []string {
	if f.version == 2 {
		return []string{filepath.Join(f.cpu, "cpu.max"), filepath.Join(f.memory, "memory.max")}
	}
	return []string{filepath.Join(f.cpu, "cpu.cfs_quota_us"), filepath.Join(f.memory, "memory.limit_in_bytes")}
}

// Usage is what a group has used since it was made, and holds now.
type Usage struct {
	CPU       time.Duration // of all processors together
	Throttled time.Duration // CPU that it would have used and was kept from by its limit, of all processors together
	Memory    int64         // bytes that cannot be reclaimed: without the page cache
}

// Make makes the group, without a limit of CPU and with a weight; see SetCPU. One that exists is taken as it is, and loses
// that limit.
func (g *Group) Make(weight float64) error {
	existed := false
	for _, dir := range g.dirs {
		if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
			existed = true
		} else if err != nil {
			return core.Wrap(err, "cgroup.make", "")
		}
	}
	if existed {
		return g.SetCPU(0, weight)
	}
	return core.Wrap(g.setWeight(weight), "cgroup.make", "")
}

// Exists tells whether the group is there in every hierarchy.
func (g *Group) Exists() bool {
	for _, dir := range g.dirs {
		if _, err := os.Stat(dir); err != nil {
			return false
		}
	}
	return true
}

// Remove removes the group, whose processes have ended or are ending. It succeeds when there is none.
func (g *Group) Remove(ctx context.Context) error {
	var err error
	for _, dir := range g.dirs {
		err = errors.Join(err, rmdir(ctx, dir))
	}
	return core.Wrap(err, "cgroup.remove", "")
}

// Start starts a command whose process is in the group from its first instruction on.
//
// A process inherits the groups of the thread that makes it. In version 1 a thread of ours steps into the group for that and
// then ends; a process that is moved afterwards may have children already, and the kernel takes up to 10 ms for the move,
// while a thread that moves itself takes 0.1 ms (no other thread has to be stopped). Version 2 has a system call for it.
func (g *Group) Start(cmd *exec.Cmd) error {
	if g.version == 2 {
		dir, err := os.Open(g.cpu)
		if err != nil {
			return err
		}
		defer dir.Close()
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
		return cmd.Start()
	}
	return onDoomedThread(func() error {
		for _, dir := range g.dirs {
			if err := write(filepath.Join(dir, "tasks"), "0"); err != nil {
				return err
			}
		}
		return cmd.Start()
	})
}

// onDoomedThread runs fn on a thread that ends with it. The main thread cannot end; it is held while another one is taken.
func onDoomedThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // a thread that is locked when its goroutine ends, ends too
		if unix.Gettid() == unix.Getpid() {
			result <- onDoomedThread(fn)
			runtime.UnlockOSThread()
			return
		}
		result <- fn()
	}()
	return <-result
}

// period is the time over which a limit of CPU is reckoned. A group that has slept may use twice its share of a period at
// once (its burst): a quarter of a processor runs 50 ms at full speed before it waits, which covers a session's start and the
// statements of somebody who types. Shorter periods make shorter waits and smaller bursts.
const period = 100 * time.Millisecond

// SetCPU limits the group to a number of processors; 0 takes the limit off. Where groups wait for a processor, each gets its
// part by weight: 1 is that of an ordinary process.
func (g *Group) SetCPU(cores, weight float64) error {
	quota := int64(cores * float64(period.Microseconds()))
	// The burst must never exceed the quota. Kernels before 5.14 have none.
	if err := g.setBurst(0); err != nil {
		return core.Wrap(err, "cgroup.set_cpu", "")
	}
	var err error
	if g.version == 2 {
		value := "max"
		if cores > 0 {
			value = strconv.FormatInt(quota, 10)
		}
		err = write(filepath.Join(g.cpu, "cpu.max"), value+" "+strconv.FormatInt(period.Microseconds(), 10))
	} else {
		value := int64(-1)
		if cores > 0 {
			value = quota // the period is the kernel's own
		}
		err = write(filepath.Join(g.cpu, "cpu.cfs_quota_us"), strconv.FormatInt(value, 10))
	}
	if err == nil && cores > 0 {
		err = g.setBurst(quota)
	}
	return core.Wrap(errors.Join(err, g.setWeight(weight)), "cgroup.set_cpu", "")
}

// setWeight writes a weight in the unit and within the range of the kernel's.
func (g *Group) setWeight(weight float64) error {
	if g.version == 2 {
		return write(filepath.Join(g.cpu, "cpu.weight"), strconv.Itoa(min(max(int(weight*100), 1), 10_000)))
	}
	return write(filepath.Join(g.cpu, "cpu.shares"), strconv.Itoa(min(max(int(weight*1024), 2), 262_144)))
}

func (g *Group) setBurst(us int64) error {
	name := "cpu.cfs_burst_us"
	if g.version == 2 {
		name = "cpu.max.burst"
	}
	err := write(filepath.Join(g.cpu, name), strconv.FormatInt(us, 10))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// CPU reads the limit that SetCPU wrote; 0 when there is none.
func (g *Group) CPU() (float64, error) {
	var quota, per string
	if g.version == 2 {
		raw, err := os.ReadFile(filepath.Join(g.cpu, "cpu.max"))
		if err != nil {
			return 0, core.Wrap(err, "cgroup.cpu", "")
		}
		quota, per, _ = strings.Cut(strings.TrimSpace(string(raw)), " ")
	} else {
		q, err1 := os.ReadFile(filepath.Join(g.cpu, "cpu.cfs_quota_us"))
		p, err2 := os.ReadFile(filepath.Join(g.cpu, "cpu.cfs_period_us"))
		if err := errors.Join(err1, err2); err != nil {
			return 0, core.Wrap(err, "cgroup.cpu", "")
		}
		quota, per = strings.TrimSpace(string(q)), strings.TrimSpace(string(p))
	}
	if quota == "max" || quota == "-1" {
		return 0, nil
	}
	q, err1 := strconv.ParseFloat(quota, 64)
	p, err2 := strconv.ParseFloat(per, 64)
	if err := errors.Join(err1, err2); err != nil || p <= 0 {
		return 0, core.Wrap(errors.Join(err, errors.New("a limit of CPU that is no number")), "cgroup.cpu", "")
	}
	return q / p, nil
}

// SetMemory sets two limits in bytes; 0 takes one off. Beyond hard the kernel reclaims what it can and then ends a process.
// Beyond soft it reclaims and slows the group down (version 2), or takes from it first when the machine runs short (version 1).
func (g *Group) SetMemory(hard, soft int64) error {
	limit := func(n int64, none string) string {
		if n <= 0 {
			return none
		}
		return strconv.FormatInt(n, 10)
	}
	if g.version == 2 {
		return core.Wrap(errors.Join(
			write(filepath.Join(g.memory, "memory.high"), limit(soft, "max")),
			write(filepath.Join(g.memory, "memory.max"), limit(hard, "max")),
		), "cgroup.set_memory", "")
	}
	// Kernels for real-time work have no soft limit.
	_ = write(filepath.Join(g.memory, "memory.soft_limit_in_bytes"), limit(soft, "-1"))
	return core.Wrap(write(filepath.Join(g.memory, "memory.limit_in_bytes"), limit(hard, "-1")), "cgroup.set_memory", "")
}

// Usage reads what the group uses: four small files in version 1, three in version 2.
func (g *Group) Usage() (Usage, error) {
	u, err := g.usage()
	return u, core.Wrap(err, "cgroup.usage", "")
}

func (g *Group) usage() (Usage, error) {
	var u Usage
	var buf [8192]byte
	stat, err := readInto(&buf, filepath.Join(g.cpu, "cpu.stat"))
	if err != nil {
		return u, err
	}
	current, cache := "memory.current", [2]string{"inactive_file", "active_file"}
	if g.version == 2 {
		u.CPU = time.Duration(field(stat, "usage_usec")) * time.Microsecond
		u.Throttled = time.Duration(field(stat, "throttled_usec")) * time.Microsecond
	} else {
		current, cache = "memory.usage_in_bytes", [2]string{"total_inactive_file", "total_active_file"}
		u.Throttled = time.Duration(field(stat, "throttled_time"))
		raw, err := readInto(&buf, filepath.Join(g.acct, "cpuacct.usage"))
		if err != nil {
			return u, err
		}
		u.CPU = time.Duration(number(raw))
	}
	raw, err := readInto(&buf, filepath.Join(g.memory, current))
	if err != nil {
		return u, err
	}
	u.Memory = number(raw)
	if stat, err = readInto(&buf, filepath.Join(g.memory, "memory.stat")); err != nil {
		return u, err
	}
	u.Memory = max(0, u.Memory-field(stat, cache[0])-field(stat, cache[1]))
	return u, nil
}

// readInto reads a small file with three system calls, and without garbage.
func readInto(buf *[8192]byte, path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	n, err := unix.Read(fd, buf[:])
	_ = unix.Close(fd)
	if err != nil {
		return "", &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return string(buf[:n]), nil
}

// field finds the number after a name at the start of a line; 0 when there is none.
func field(stat, name string) int64 {
	for line := range strings.Lines(stat) {
		if rest, ok := strings.CutPrefix(line, name); ok && strings.HasPrefix(rest, " ") {
			return number(rest)
		}
	}
	return 0
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	return n
}

// procs lists the processes of a group's folder; none when it cannot be read.
func procs(dir string) iter.Seq[int] {
	return func(yield func(int) bool) {
		raw, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return
		}
		for s := range strings.FieldsSeq(string(raw)) {
			if pid, err := strconv.Atoi(s); err == nil && !yield(pid) {
				return
			}
		}
	}
}
