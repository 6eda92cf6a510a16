package cli

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// computeFlags size a compute.
type computeFlags struct{ cu, suspend string }

func (f *computeFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.cu, "cu", "", "compute units, one size or a range: 1 or 0.25-2 (1 is 1 vCPU and 4 GiB)")
	c.Flags().StringVar(&f.suspend, "suspend-timeout", "", "sleep after this time without use: 300, 10m, never, default")
}

// parse returns nil for what was not given.
func (f *computeFlags) parse() (low, high *float64, suspend *int64, err error) {
	if f.cu != "" {
		first, second, isRange := strings.Cut(f.cu, "-")
		if !isRange {
			second = first
		}
		l, err1 := strconv.ParseFloat(strings.TrimSpace(first), 64)
		h, err2 := strconv.ParseFloat(strings.TrimSpace(second), 64)
		if err1 != nil || err2 != nil || !(l > 0 && h >= l) {
			return nil, nil, nil, usagef("--cu is a size such as 1 or a range such as 0.25-2, not %q", f.cu)
		}
		low, high = &l, &h
	}
	switch f.suspend {
	case "":
	case "never":
		suspend = new(int64(-1))
	case "default":
		suspend = new(int64(0))
	case "-1":
		suspend = new(int64(-1))
	default:
		if suspend, err = seconds("--suspend-timeout", f.suspend); err != nil {
			return nil, nil, nil, err
		}
	}
	return low, high, suspend, nil
}

// seconds reads a time such as 300, 90s, 10m, 24h or 7d; nil when empty.
func seconds(flag, v string) (*int64, error) {
	if v == "" {
		return nil, nil
	}
	if n, err := strconv.ParseInt(v, 10, 64); err == nil && n >= 0 {
		return &n, nil
	}
	if days, ok := strings.CutSuffix(v, "d"); ok {
		if n, err := strconv.ParseInt(days, 10, 32); err == nil && n >= 0 {
			return new(n * 24 * 60 * 60), nil
		}
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 || d%time.Second != 0 {
		return nil, usagef("%s is a time such as 300 (seconds), 10m, 24h or 7d, not %q", flag, v)
	}
	return new(int64(d / time.Second)), nil
}

// oneName takes a name that may be an argument or a flag.
func oneName(args []string, flag, what string, required bool) (string, error) {
	switch {
	case len(args) > 0 && flag != "" && args[0] != flag:
		return "", usagef("the %s is given twice: %q and --name %q", what, args[0], flag)
	case len(args) > 0 && args[0] != "":
		return args[0], nil
	case flag == "" && (required || len(args) > 0):
		return "", usagef("give a %s", what)
	}
	return flag, nil
}

func opt(v string) *string {
	if v == "" {
		return nil
	}
	return &v
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
