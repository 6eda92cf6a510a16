// Package cgroup keeps each compute within its size: a control group for the postmaster and everything that it starts, with
// limits of CPU and memory, on cgroup v1 and v2. Groups live under bough/<server>/<compute> in every hierarchy, away from the
// server's own group: computes outlive the server. Nothing is kept in memory; a group is found again by its name.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// busy is what the computes of a server weigh together on each processor, in processes.
const busy = 4

// top is the folder of all servers' groups in each hierarchy.
const top = "bough"

// Tree is the groups of one server's computes. Its methods are safe for concurrent use.
type Tree struct {
	version           int    // of the interface: 1 or 2
	name              string // of the server
	cpu, acct, memory string // where their hierarchies are mounted; all the same in version 2
}

// Open prepares the groups of the server that is called name (one path element). An error says in words for the operator
// why computes cannot be limited on this machine; nothing is left behind then that a later Open would not use.
func Open(name string) (*Tree, error) {
	if os.Geteuid() != 0 {
		return nil, unusable("the server does not run as root", nil)
	}
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, unusable("/proc/self/mountinfo cannot be read", err)
	}
	return open(name, parseMounts(string(raw)))
}

func open(name string, m mounts) (*Tree, error) {
	t := choose(name, m)
	if t.cpu == "" || t.acct == "" || t.memory == "" {
		return nil, unusable("no mounted hierarchy has the controllers cpu and memory", nil)
	}
	if t.version == 2 {
		if err := delegate(m.v2); err != nil {
			return nil, err
		}
	}
	for _, root := range t.roots() {
		if err := t.mkdir(root); err != nil {
			return nil, unusable("groups cannot be made below "+root, err)
		}
	}
	// What the kernel was built or booted without shows in the files that are missing.
	for _, file := range t.files(filepath.Join(top, t.name)).limits() {
		if _, err := os.Stat(file); err != nil {
			return nil, unusable("the kernel has no "+filepath.Base(file), nil)
		}
	}
	// When the machine is busy all computes together would get no more of it than one process outside of the groups. They
	// count as a few busy ones on each processor; the server and the control database stay outside, and keep their part.
	for _, rel := range []string{top, filepath.Join(top, t.name)} {
		g := Group{files: t.files(rel)}
		if err := g.setWeight(float64(busy * runtime.NumCPU())); err != nil {
			return nil, unusable("the weight of groups cannot be set", err)
		}
	}
	return t, nil
}

// choose takes version 2 where it has the controllers.
func choose(name string, m mounts) *Tree {
	if hasControllers(m.v2) {
		return &Tree{version: 2, name: name, cpu: m.v2, acct: m.v2, memory: m.v2}
	}
	return &Tree{version: 1, name: name, cpu: m.v1["cpu"], acct: m.v1["cpuacct"], memory: m.v1["memory"]}
}

func unusable(why string, err error) error {
	return &core.Error{Kind: core.KindPrecondition, Op: "cgroup.open", Message: why, Err: err}
}

// Version is that of the kernel's interface: 1 or 2.
func (t *Tree) Version() int { return t.version }

// roots are the mount points of the hierarchies, each once; those that are not mounted are left out.
func (t *Tree) roots() []string {
	roots := slices.DeleteFunc([]string{t.cpu, t.acct, t.memory}, func(dir string) bool { return dir == "" })
	slices.Sort(roots)
	return slices.Compact(roots)
}

// mkdir makes the server's folder in one hierarchy. Another server that ends may remove the top folder in between.
func (t *Tree) mkdir(root string) error {
	var err error
	for range 10 {
		err = os.MkdirAll(filepath.Join(root, top, t.name), 0o755)
		if err == nil && t.version == 2 {
			err = errors.Join(enable(filepath.Join(root, top)), enable(filepath.Join(root, top, t.name)))
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

// controllers is what a version 2 folder must hand down.
const controllers = "+cpu +memory"

func enable(dir string) error {
	return write(filepath.Join(dir, "cgroup.subtree_control"), controllers)
}

func hasControllers(dir string) bool {
	if dir == "" {
		return false
	}
	raw, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	have := strings.Fields(string(raw))
	return err == nil && slices.Contains(have, "cpu") && slices.Contains(have, "memory")
}

// delegate makes the root of a version 2 hierarchy hand the controllers down. The root of a container's name space must not
// hold processes then ("no internal processes" in the kernel's cgroup-v2 manual): the server steps aside when it is alone.
func delegate(root string) error {
	err := enable(root)
	if !errors.Is(err, unix.EBUSY) {
		if err != nil {
			return unusable("the controllers of "+root+" cannot be handed down", err)
		}
		return nil
	}
	for pid := range procs(root) {
		if pid != os.Getpid() {
			return unusable("the group that the server runs in has other processes too, so it cannot hand its controllers down; run the server alone in its container", nil)
		}
	}
	aside := filepath.Join(root, "bough-server")
	if err := os.Mkdir(aside, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return unusable("groups cannot be made below "+root, err)
	}
	if err := write(filepath.Join(aside, "cgroup.procs"), "0"); err != nil {
		return unusable("the server cannot step aside into "+aside, err)
	}
	if err := enable(root); err != nil {
		return unusable("the controllers of "+root+" cannot be handed down", err)
	}
	return nil
}

// Group names the group of a compute (one path element), whether or not it exists.
func (t *Tree) Group(id string) *Group {
	rel := filepath.Join(top, t.name, id)
	return &Group{files: t.files(rel), dirs: t.below(rel)}
}

func (t *Tree) below(rel string) []string {
	dirs := t.roots()
	for i := range dirs {
		dirs[i] = filepath.Join(dirs[i], rel)
	}
	return dirs
}

// IDs lists the computes that have a group, sorted.
func (t *Tree) IDs() ([]string, error) {
	var ids []string
	for _, dir := range t.below(filepath.Join(top, t.name)) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, core.Wrap(err, "cgroup.list", "")
		}
		for _, e := range entries {
			if e.IsDir() {
				ids = append(ids, e.Name())
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Lift takes the limits off all groups of a server, with or without a Tree: computes that end do so at full speed, and a
// server that is to set no limits leaves none of its predecessor's. It does nothing where there are no groups.
func Lift(name string) error {
	return existing(name, func(t *Tree, id string) error {
		g := t.Group(id)
		if err := errors.Join(g.SetCPU(0, 1), g.SetMemory(0, 0)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil // its compute has just ended
	})
}

// Clean removes all groups of a server, whose computes have ended, with or without a Tree.
func Clean(ctx context.Context, name string) error {
	t, err := find(name)
	if t == nil {
		return err
	}
	if err := existing(name, func(t *Tree, id string) error { return t.Group(id).Remove(ctx) }); err != nil {
		return err
	}
	for _, dir := range t.below(filepath.Join(top, t.name)) {
		if err := rmdir(ctx, dir); err != nil {
			return core.Wrap(err, "cgroup.clean", "")
		}
		_ = unix.Rmdir(filepath.Dir(dir)) // stays while another server has groups
	}
	return nil
}

// existing calls fn for every group of a server.
func existing(name string, fn func(t *Tree, id string) error) error {
	t, err := find(name)
	if t == nil {
		return err
	}
	ids, err := t.IDs()
	for _, id := range ids {
		err = errors.Join(err, fn(t, id))
	}
	return core.Wrap(err, "cgroup.each", "")
}

// find returns the groups that a server has, nil when it has none.
func find(name string) (*Tree, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, core.Wrap(err, "cgroup.find", "")
	}
	t := choose(name, parseMounts(string(raw)))
	for _, dir := range t.below(filepath.Join(top, name)) {
		if _, err := os.Stat(dir); err == nil {
			return t, nil
		}
	}
	return nil, nil
}

// mounts is where the hierarchies are.
type mounts struct {
	v1 map[string]string // by controller
	v2 string
}

// parseMounts reads proc_pid_mountinfo(5). The first mount of a hierarchy counts.
func parseMounts(info string) mounts {
	m := mounts{v1: map[string]string{}}
	for line := range strings.Lines(info) {
		left, right, ok := strings.Cut(line, " - ")
		before, after := strings.Fields(left), strings.Fields(right)
		if !ok || len(before) < 6 || len(after) < 3 {
			continue
		}
		dir := unescape(before[4])
		switch after[0] {
		case "cgroup2":
			if m.v2 == "" {
				m.v2 = dir
			}
		case "cgroup":
			for option := range strings.SplitSeq(after[2], ",") {
				if _, seen := m.v1[option]; !seen {
					m.v1[option] = dir
				}
			}
		}
	}
	return m
}

// unescape undoes the octal escapes of white space and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// write writes to a file of the kernel's, which must exist.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

const (
	removePatience = 5 * time.Second
	removeEvery    = 2 * time.Millisecond
)

// rmdir removes a group's folder. A process that has ended leaves its group a moment later.
func rmdir(ctx context.Context, dir string) error {
	for deadline := time.Now().Add(removePatience); ; {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINTR):
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		case time.Now().After(deadline):
			var pids []int
			for pid := range procs(dir) {
				pids = append(pids, pid)
			}
			return fmt.Errorf("%s still holds the processes %v", dir, pids)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(removeEvery):
		}
	}
}
