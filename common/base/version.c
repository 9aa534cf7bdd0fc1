#include "base/version.h"

const char *nosa_version(void)
{
    return NOSA_VERSION;
}
