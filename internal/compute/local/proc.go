package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func procPath(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

// stat is what we use of /proc/<pid>/stat (proc_pid_stat(5)).
type stat struct {
	state      byte   // field 3
	ppid       int    // field 4
	session    int    // field 6
	startTicks uint64 // field 22
}

var errStat = errors.New("/proc/<pid>/stat is malformed")

func readStat(pid int) (stat, error) {
	raw, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(raw))
}

// parseStat skips the command name, which may hold spaces and parentheses.
func parseStat(s string) (stat, error) {
	end := strings.LastIndexByte(s, ')')
	if end < 0 {
		return stat{}, errStat
	}
	f := strings.Fields(s[end+1:]) // f[0] is field 3
	if len(f) < 20 || len(f[0]) != 1 {
		return stat{}, errStat
	}
	ppid, err1 := strconv.Atoi(f[1])
	session, err2 := strconv.Atoi(f[3])
	ticks, err3 := strconv.ParseUint(f[19], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return stat{}, err
	}
	return stat{state: f[0][0], ppid: ppid, session: session, startTicks: ticks}, nil
}

// proc is a process that may belong to a server.
type proc struct {
	pid int
	cwd string
	exe string // "" when it may not be read
	stat
}

func (p proc) isPostgres() bool { return filepath.Base(p.exe) == "postgres" }

// dataDir is what a postmaster was started with; backends overwrite their command line.
func (p proc) dataDir() string {
	raw, err := os.ReadFile(procPath(p.pid, "cmdline"))
	if err != nil {
		return ""
	}
	args := strings.Split(string(raw), "\x00")
	for i, a := range args {
		if a == "-D" && i+1 < len(args) {
			return filepath.Clean(args[i+1])
		}
	}
	return ""
}

// list reads every live process whose working directory we may see: all as root, our own otherwise.
func list(ctx context.Context) ([]proc, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return nil, err
	}
	var out []proc
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		cwd, err := os.Readlink(procPath(pid, "cwd"))
		if err != nil || cwd == "/" {
			continue // ended, a zombie, somebody else's, or none of a server's
		}
		st, err := readStat(pid)
		if err != nil || st.state == 'Z' || st.state == 'X' {
			continue
		}
		exe, _ := os.Readlink(procPath(pid, "exe"))
		out = append(out, proc{
			pid: pid, stat: st,
			cwd: strings.TrimSuffix(cwd, " (deleted)"),
			exe: strings.TrimSuffix(exe, " (deleted)"), // replaced by an upgrade
		})
	}
	return out, ctx.Err()
}

// membersOf picks the servers that work in dir, and what they have started: its commands share their session. Others may
// stand in that folder too (an operator's shell).
func membersOf(procs []proc, dir string) []proc {
	folder, err := os.Stat(dir)
	// The folder tells, not its name: under a mount that was taken away the kernel shows another one.
	in := func(p proc) bool {
		if p.cwd == dir || err != nil || filepath.Base(p.cwd) != filepath.Base(dir) {
			return p.cwd == dir
		}
		cwd, err := os.Stat(procPath(p.pid, "cwd"))
		return err == nil && os.SameFile(cwd, folder)
	}
	sessions := map[int]bool{}
	for _, p := range procs {
		if in(p) && p.isPostgres() {
			sessions[p.session] = true
		}
	}
	var out []proc
	for _, p := range procs {
		if in(p) && (p.isPostgres() || sessions[p.session]) {
			out = append(out, p)
		}
	}
	return out
}

// signalAll signals processes that are still the ones that were listed.
func signalAll(procs []proc, sig syscall.Signal) {
	for _, p := range procs {
		fd, err := unix.PidfdOpen(p.pid, 0)
		if err != nil {
			continue
		}
		if st, err := readStat(p.pid); err == nil && st.startTicks == p.startTicks {
			_ = unix.PidfdSendSignal(fd, sig, nil, 0)
		}
		_ = unix.Close(fd)
	}
}

// recoveryNice is the niceness of a server's startup process while its end is waited for.
const recoveryNice = -10

// hurry gives the startup process of a postmaster more of the processor; it tells whether it has found that process, which
// ends with the recovery. Where we may not, recovery takes its turn like the rest.
func hurry(postmaster int) bool {
	raw, err := os.ReadFile(procPath(postmaster, filepath.Join("task", strconv.Itoa(postmaster), "children")))
	if err != nil {
		return false
	}
	for child := range strings.FieldsSeq(string(raw)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			continue
		}
		// "postgres: CLUSTER_NAME: startup recovering 000000010000000000000003"
		if title, err := os.ReadFile(procPath(pid, "cmdline")); err != nil || !strings.Contains(string(title), ": startup") {
			continue
		}
		_ = unix.Setpriority(unix.PRIO_PROCESS, pid, recoveryNice)
		// Each server process has a session, and so an autogroup, of its own; then only the group's niceness counts (sched(7)).
		_ = os.WriteFile(procPath(pid, "autogroup"), []byte(strconv.Itoa(recoveryNice)), 0)
		return true
	}
	return false
}
