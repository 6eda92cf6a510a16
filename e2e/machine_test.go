package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// process is one that runs on this machine.
type process struct {
	pid, ppid int
	comm      string
	cwd       string
	cmdline   string
}

// processes lists what runs in a folder below dir or names it on its command line, except this test and its children.
func processes(dir string) []process {
	var found []process
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		proc := filepath.Join("/proc", e.Name())
		cwd, _ := os.Readlink(filepath.Join(proc, "cwd"))
		args, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		cmdline := strings.ReplaceAll(string(args), "\x00", " ")
		if !strings.HasPrefix(cwd, dir+"/") && !strings.Contains(cmdline, dir+"/") {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(proc, "stat"))
		if err != nil {
			continue // it has just ended
		}
		open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
		fields := strings.Fields(string(stat[end+1:]))
		if fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		ppid, _ := strconv.Atoi(fields[1])
		found = append(found, process{pid: pid, ppid: ppid, comm: string(stat[open+1 : end]), cwd: cwd, cmdline: cmdline})
	}
	return found
}

// postmasters maps the data directories below dir to the postmasters that run in them.
func postmasters(dir string) map[string][]int {
	all := processes(dir)
	where := map[int]string{}
	for _, p := range all {
		if p.comm == "postgres" && strings.HasPrefix(p.cwd, dir+"/") {
			where[p.pid] = p.cwd
		}
	}
	found := map[string][]int{}
	for _, p := range all {
		if cwd, ok := where[p.pid]; ok && where[p.ppid] != cwd {
			found[cwd] = append(found[cwd], p.pid)
		}
	}
	return found
}

func mountsBelow(dir string) []string {
	raw, _ := os.ReadFile("/proc/mounts")
	var found []string
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			found = append(found, f[1])
		}
	}
	return found
}

func loopsBelow(dir string) []string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var found []string
	for _, f := range files {
		raw, _ := os.ReadFile(f)
		if strings.HasPrefix(string(raw), dir+"/") {
			found = append(found, strings.TrimSpace(string(raw)))
		}
	}
	return found
}

// folders lists the folders in dir, nil when there is no dir.
func folders(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}
