package storage

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	loopMajor       = 7
	loopBlockSize   = 4096 // btrfs's sector; direct I/O needs requests aligned to the disk's, which is never larger here
	minImageSize    = gib
	firstImageSize  = 16 * gib
	unmountPatience = 30 * time.Second
)

// mountImage makes sure that DIR/pool is the mounted image DIR/pool.img, in full.
func mountImage(ctx context.Context, opts Options) error {
	if err := findOrMount(ctx, opts); err != nil {
		return err
	}
	// A crash may have interrupted its growth; without the rest the pool works.
	if err := completeGrowth(opts.Dir); err != nil {
		opts.Log.WarnContext(ctx, "cannot complete the growth of the pool image", "error", err)
	}
	if opts.Preallocate {
		fillHoles(ctx, opts.Log, opts.Dir)
	}
	return nil
}

func findOrMount(ctx context.Context, opts Options) error {
	pool, image := poolPath(opts.Dir), imagePath(opts.Dir)
	m, err := mountOf(pool)
	if err != nil {
		return err
	}
	if m != nil {
		if m.fsType != "btrfs" {
			return fmt.Errorf("%s is a mounted %s, not btrfs", pool, m.fsType)
		}
		writable, err := isWritable(pool)
		if err != nil || writable {
			return err
		}
		// The file system has stopped itself after an error, as when the host ran full: only a new mount helps.
		opts.Log.WarnContext(ctx, "the pool is read-only; mounting it again", "dir", pool)
		if err := unmountPool(ctx, opts.Dir); err != nil {
			return fmt.Errorf("the pool is read-only and cannot be unmounted: %w", err)
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("not root: an image can only be mounted by root, and the data directory is not on btrfs")
	}
	if used, err := hasVolumes(opts.Dir); err != nil {
		return err
	} else if used {
		return fmt.Errorf("%s holds volumes of another backend; mounting an image would hide them", pool)
	}
	if err := os.MkdirAll(pool, 0o755); err != nil {
		return err
	}
	if _, err := os.Lstat(image); notExist(err) {
		if err := makeImage(ctx, opts); err != nil {
			return err
		}
		if err := mountLoop(ctx, opts); err != nil {
			// An empty image that cannot be mounted must not keep another backend from working here.
			return errors.Join(err, os.Remove(image))
		}
		return nil
	} else if err != nil {
		return err
	}
	return mountLoop(ctx, opts)
}

// mountLoop mounts an image that is not mounted.
func mountLoop(ctx context.Context, opts Options) error {
	image := imagePath(opts.Dir)
	// A device left over from a crash would give the kernel the same file system twice.
	if err := detachLoops(ctx, image); err != nil {
		return err
	}
	loop, err := attachLoop(opts.Log, image)
	if err != nil {
		return err
	}
	defer loop.Close() // the mount keeps it; without a mount, closing detaches it
	return mountDevice(opts, loop.Name())
}

// makeImage makes a file system image under a temporary name and renames it when it is complete, so a crash never leaves
// a half-made one behind.
func makeImage(ctx context.Context, opts Options) (err error) {
	mkfs, err := findTool("mkfs.btrfs")
	if err != nil {
		return fmt.Errorf("%w; install btrfs-progs", err)
	}
	size, err := imageSize(opts)
	if err != nil {
		return err
	}
	image := imagePath(opts.Dir)
	tmp := image + ".tmp"
	if err := os.Remove(tmp); err != nil && !notExist(err) {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp)
		}
	}()
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	args := []string{"--quiet", "--force", "--label", "bough"}
	if opts.Preallocate {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
			return fmt.Errorf("preallocate %s for %s: %w", formatBytes(size), image, err)
		}
		args = append(args, "--nodiscard")
	} else if err := f.Truncate(size); err != nil {
		return err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, mkfs, append(args, tmp)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(mkfs), err, strings.TrimSpace(out.String()))
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp, image); err != nil {
		return err
	}
	opts.Log.InfoContext(ctx, "made a btrfs image for the volumes", "path", image, "bytes", size, "preallocated", opts.Preallocate)
	return syncPath(opts.Dir)
}

// imageSize is the first size of a new image. It grows when it is needed, so that what the pool says is free is what the
// host has; a preallocated one takes half of that at most, because WAL and the control database live beside it.
func imageSize(opts Options) (int64, error) {
	if opts.SizeBytes > 0 {
		return opts.SizeBytes, nil
	}
	host, err := roomOf(opts.Dir, opts.HostReserve)
	if err != nil {
		return 0, err
	}
	size := host.Free - host.Reserve
	if opts.Preallocate {
		size /= 2
	}
	if opts.LimitBytes > 0 {
		size = min(size, opts.LimitBytes)
	}
	return max(min(size, firstImageSize)/gib*gib, minImageSize), nil
}

// findTool looks on PATH and where Debian keeps administrators' tools, which an ordinary PATH leaves out.
func findTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

// attachLoop connects an image to a free loop device with direct I/O. The device frees itself when its last user is gone:
// the returned file until it is closed, then the mount.
func attachLoop(log *slog.Logger, image string) (*os.File, error) {
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("no loop devices: %w", err)
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: loopBlockSize}
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO | unix.LO_FLAGS_AUTOCLEAR
	copy(config.Info.File_name[:len(config.Info.File_name)-1], image)
	for range 100 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no free loop device: %w", err)
		}
		dev, err := openLoop(n)
		if err != nil {
			return nil, fmt.Errorf("open loop device %d: %w", n, err)
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			if info, err := unix.IoctlLoopGetStatus64(int(dev.Fd())); err == nil && info.Flags&unix.LO_FLAGS_DIRECT_IO == 0 {
				log.Warn("the host's file system does not allow direct I/O on the pool image; data will be cached twice", "image", image)
			}
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) { // EBUSY: another process was faster
			return nil, fmt.Errorf("attach %s to a loop device: %w", image, err)
		}
	}
	return nil, errors.New("attach loop device: every free one was taken by another process")
}

func openLoop(n int) (*os.File, error) {
	path := "/dev/loop" + strconv.Itoa(n)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if !notExist(err) {
		return f, err
	}
	// Containers often have a static /dev that does not follow the kernel.
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
}

// loopsOf returns the loop devices, as paths, that an image is attached to.
func loopsOf(image string) ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var devs []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // detached since
		}
		// The kernel marks a backing file that has been removed.
		if strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), " (deleted)") == image {
			devs = append(devs, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(file))))
		}
	}
	return devs, nil
}

// detachLoops frees every loop device of an image and returns when they are free.
func detachLoops(ctx context.Context, image string) error {
	ctx, cancel := context.WithTimeout(ctx, unmountPatience)
	defer cancel()
	err := poll(ctx, func() (bool, error) {
		devs, err := loopsOf(image)
		if err != nil || len(devs) == 0 {
			return true, err
		}
		for _, dev := range devs {
			f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				if notExist(err) {
					continue
				}
				return false, err
			}
			_, err = unix.IoctlRetInt(int(f.Fd()), unix.LOOP_CLR_FD)
			f.Close()
			if err != nil && !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.EBUSY) {
				return false, fmt.Errorf("detach %s: %w", dev, err)
			}
		}
		return false, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the loop device of %s is still in use: %w", image, err)
	}
	return err
}

// Unmount takes the pool of a data directory out of the mount table and frees its loop device. It needs no open Pool, does
// nothing when nothing is mounted, and waits up to half a minute for the last users to leave.
func Unmount(ctx context.Context, dir string) error {
	const op = "storage.unmount"
	dir, err := filepath.Abs(dir)
	if err != nil {
		return wrap(err, op, "")
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		if notExist(err) {
			return nil
		}
		return wrap(err, op, "")
	}
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return wrap(err, op, "another process is opening this data directory")
	}
	defer unlock()
	return wrap(unmountPool(ctx, dir), op, "a compute or a shell may still be using "+poolPath(dir))
}

func unmountPool(ctx context.Context, dir string) error {
	pool, image := poolPath(dir), imagePath(dir)
	ctx, cancel := context.WithTimeout(ctx, unmountPatience)
	defer cancel()
	busy := false
	err := poll(ctx, func() (bool, error) {
		m, err := mountOf(pool)
		if err != nil || m == nil {
			return true, err
		}
		devs, err := loopsOf(image)
		if err != nil {
			return true, err
		}
		if !slices.Contains(devs, m.source) {
			return true, nil // somebody else's mount
		}
		switch err := unix.Unmount(pool, 0); {
		case err == nil:
			return false, nil // look again: mounts stack
		case errors.Is(err, unix.EBUSY):
			busy = true
			return false, nil
		default:
			return true, fmt.Errorf("unmount %s: %w", pool, err)
		}
	})
	if err != nil && busy && ctx.Err() != nil {
		return fmt.Errorf("unmount %s: %w", pool, unix.EBUSY)
	}
	if err != nil {
		return err
	}
	return detachLoops(ctx, image)
}

// mountInfo is what a line of /proc/self/mountinfo (proc(5)) says about a mount.
type mountInfo struct {
	fsType string
	source string
}

// mountOf returns the topmost mount at exactly path, nil when there is none.
func mountOf(path string) (*mountInfo, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found *mountInfo
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		head, tail, ok := strings.Cut(sc.Text(), " - ")
		fields, rest := strings.Fields(head), strings.Fields(tail)
		if !ok || len(fields) < 5 || len(rest) < 2 || unescapeMount(fields[4]) != path {
			continue
		}
		found = &mountInfo{fsType: rest[0], source: unescapeMount(rest[1])} // later lines lie on top
	}
	return found, sc.Err()
}

// unescapeMount resolves the octal escapes that the kernel writes for blanks and backslashes.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isWritable(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Flags&unix.ST_RDONLY == 0, nil
}
